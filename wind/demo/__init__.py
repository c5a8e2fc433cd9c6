"""The demo's models, made from nothing: a small policy that slips at sums, and a reward model that
learnt what people prefer.

`sums` is the task, `tokenizer` the two vocabularies, `policy` and `reward` train and write one
Hugging Face folder each. Everything is a function of a seed; the demo prompts appear neither in the
policy's corpus nor among the preferences.
"""
