"""Everyday questions with one instruction that a program can check.

These are the prompts and the reward of `configs/smollm2.yaml`. `python -m configs.smollm2 >
configs/smollm2.jsonl` writes the prompts. `reward` is how nearly an instruction was obeyed, from 0
to 1, and `obeyed` whether it was. Both give 0 to a response that names nothing from the question's
subject: an empty one would otherwise have no comma, no capital and at most fifteen words. Length as
such is not rewarded unless an instruction asks for it, and shares are of words, so that a short
answer is not closer to the goal than a long one with the same share.
"""

import itertools
import json
import re
from collections.abc import Callable
from typing import Final, NamedTuple


class Instruction(NamedTuple):
    """An instruction of a prompt, and how nearly a response obeys it.

    The nearness is 1 for a response that obeys, and less for one that does not.
    """

    sentence: str
    nearness: Callable[[str], float]


def reward(prompts: list[str], responses: list[str], answers: list[str | None]) -> list[float]:
    """Return how nearly each response obeys its instruction, from 0 to 1.

    `answers` are the names of the instructions.
    """
    return [
        _nearness(prompt, response, _instruction(prompt, answer))
        for prompt, response, answer in zip(prompts, responses, answers, strict=True)
    ]


def obeyed(prompts: list[str], responses: list[str], answers: list[str | None]) -> list[float]:
    """Return 1 for each response that obeys its instruction, else 0."""
    return [float(nearness == 1) for nearness in reward(prompts, responses, answers)]


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case, without punctuation."""
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())


def is_about(question: str, response: str) -> bool:
    """Return True if a response has a word of the question's subject.

    Compares the first four letters: volcano, volcanic, volcanoes.
    """
    subject = {word[:4] for word in words(question) if len(word) > 2 and word not in TEMPLATE_WORDS}
    return not subject.isdisjoint(word[:4] for word in words(response))


def rows() -> list[dict[str, str]]:
    """Return one row per question, cycling through the instructions."""
    asked = [
        template.format(subject)
        for template, subjects in QUESTIONS.items()
        for subject in subjects.split(", ")
    ]
    names = itertools.cycle(INSTRUCTIONS)
    return [
        {"prompt": f"{question} {INSTRUCTIONS[name].sentence}", "instruction": name}
        for question, name in zip(asked, names, strict=False)
    ]


def _nearness(prompt: str, response: str, instruction: Instruction) -> float:
    question = prompt.removesuffix(instruction.sentence)
    return instruction.nearness(response.strip()) if is_about(question, response) else 0.0


def _instruction(prompt: str, name: str | None) -> Instruction:
    instruction = INSTRUCTIONS.get(name or "")
    if instruction is None or not prompt.endswith(instruction.sentence):
        raise ValueError(
            f"{name!r} is not the instruction of {prompt!r}: "
            "set prompts.answer_field to instruction"
        )
    return instruction


def _share(is_right: Callable[[str], bool]) -> Callable[[str], float]:
    """Return the share of whitespace-separated words that are right."""

    def share(text: str) -> float:
        parts = text.split()
        return sum(map(is_right, parts)) / len(parts)

    return share


def _mean(*checks: Callable[[str], bool]) -> Callable[[str], float]:
    """Return the share of `checks` that hold."""
    return lambda text: sum(check(text) for check in checks) / len(checks)


def _numbered(text: str) -> list[str]:
    """Return the lines that begin with `1.`, `2)` and the like."""
    return re.findall(r"^[ \t]*\d+[.)][ \t]*\S.*", text, re.MULTILINE)


def _sentences(text: str) -> list[str]:
    """Return the sentences of `text`, including an unfinished one.

    A point within a number or a name ends no sentence.
    """
    return [sentence for sentence in re.split(r"[.!?]+(?=\s|$)", text) if words(sentence)]


def _is_json(text: str) -> bool:
    """Return True if the text is one JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


INSTRUCTIONS: Final = {
    "lower_case": Instruction(
        "Write in lower case only.", _share(lambda word: word == word.lower())
    ),
    "no_commas": Instruction("Do not use any commas.", _share(lambda word: "," not in word)),
    "at_most_fifteen_words": Instruction(
        "Use at most fifteen words.", lambda text: min(1.0, 15 / len(text.split()))
    ),
    "at_least_twenty_words": Instruction(
        "Use at least twenty words.", lambda text: min(1.0, len(text.split()) / 20)
    ),
    "one_sentence": Instruction(
        "Answer in exactly one sentence.", lambda text: 1 / max(1, len(_sentences(text)))
    ),
    "two_sentences": Instruction(
        "Answer in exactly two sentences.", lambda text: 1 / (1 + abs(len(_sentences(text)) - 2))
    ),
    "numbered_list": Instruction(
        "Answer with a numbered list.", lambda text: min(1.0, len(_numbered(text)) / 2)
    ),
    "starts_with_the": Instruction(
        "Start your answer with the word The.", _mean(lambda text: words(text)[0] == "the")
    ),
    "because": Instruction("Use the word because.", _mean(lambda text: "because" in words(text))),
    "ends_with_question": Instruction(
        "End your answer with a question.",
        _mean(lambda text: "?" in text, lambda text: text.endswith("?")),
    ),
    "ends_with_exclamation": Instruction(
        "End your answer with an exclamation mark.",
        _mean(lambda text: "!" in text, lambda text: text.endswith("!")),
    ),
    "json": Instruction(
        "Answer as a JSON object.",
        _mean(lambda text: text.startswith("{"), lambda text: text.endswith("}"), _is_json),
    ),
}

# each template, and its subjects
QUESTIONS: Final = {
    "What is {}?": (
        "a volcano, an eclipse, a glacier, a library, a compass, a recipe, a budget, democracy, a "
        "desert, a vitamin, "
        "a poem, an orchestra, gravity, a rainbow, a passport, inflation, a telescope, a comet, a "
        "thermometer, a calendar, "
        "a hurricane, an engine, a museum, a contract"
    ),
    "How do I {}?": (
        "boil an egg, plant tomatoes, change a flat tire, clean a window, learn the guitar, write "
        "a letter, fold a shirt, "
        "paint a wall, cook rice, sharpen a knife, bake bread, remove a coffee stain, tie a knot, "
        "wash a wool sweater, "
        "save electricity, repair a bicycle, train a puppy, make a paper plane, grow basil, take "
        "better photographs, "
        "pack a suitcase, build a campfire, iron a dress, start a conversation"
    ),
    "Why do {}?": (
        "cats purr, leaves fall in autumn, birds migrate, people dream, onions make us cry, ships "
        "float, bees make honey, "
        "stars twinkle, dogs bark, tides rise, rivers bend, babies laugh, mirrors reflect, wolves "
        "howl, muscles ache, "
        "clocks tick, flowers smell, magnets attract iron, owls hunt at night, airplanes fly, "
        "spiders spin webs, "
        "children play, trees have bark, people yawn"
    ),
    "What does {} do at work?": (
        "a nurse, a carpenter, a lawyer, a baker, an architect, a farmer, a plumber, a pilot, a "
        "teacher, a librarian, "
        "an electrician, a journalist, a gardener, a dentist, a firefighter, a translator, a "
        "chef, a mechanic, a judge, "
        "a photographer, a tailor, a surgeon, a cashier, an astronomer"
    ),
    "Give me one tip for {}.": (
        "sleeping well, a job interview, saving money, learning French, running a marathon, "
        "cooking pasta, a long flight, "
        "public speaking, reading more books, keeping houseplants alive, a first date, moving "
        "house, buying a used car, "
        "healthy breakfasts, camping in the rain, studying for exams, a small kitchen, "
        "remembering names, "
        "walking a dog, better handwriting, a birthday party, teaching children, swimming faster, "
        "a quiet office"
    ),
    "Tell me about {}.": (
        "the moon, elephants, chess, the ocean, chocolate, the piano, Egypt, winter, penguins, "
        "the Olympic games, coffee, "
        "bridges, soccer, dinosaurs, the brain, Paris, jazz, robots, sharks, bamboo, castles, the "
        "violin, honey, whales"
    ),
    "What is the capital of {}?": (
        "France, Japan, Italy, Canada, Brazil, Kenya, Norway, India, Spain, Greece, Mexico, "
        "Germany, Australia, Poland, "
        "Portugal, Ireland, Turkey, Peru, Thailand, Sweden, Cuba, Austria, China, Chile"
    ),
    "Why is {} good for you?": (
        "walking, fresh fruit, laughter, sleep, swimming, green tea, music, friendship, yoga, "
        "sunlight, spinach, dancing, "
        "reading, water, garlic, cycling, gardening, singing, breakfast, meditation, olive oil, a "
        "holiday, fish, stretching"
    ),
    "What can I make with {}?": (
        "apples, old newspapers, clay, potatoes, empty bottles, wool, carrots, cardboard, lemons, "
        "a pumpkin, seashells, "
        "bananas, driftwood, strawberries, old jeans, mushrooms, buttons, eggs, leftover bread, "
        "chickpeas, cabbage, "
        "oranges, tin cans, ribbons"
    ),
}

# words that belong to no subject
TEMPLATE_WORDS: Final = {*words(" ".join(QUESTIONS)), "the", "and", "have", "make", "more"}


def main() -> None:
    """Write the prompts to standard output, one JSON object per line."""
    for row in rows():
        print(json.dumps(row))


if __name__ == "__main__":
    main()
