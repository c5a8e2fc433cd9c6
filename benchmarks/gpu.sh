#!/usr/bin/env bash
# Measure one GPU of 80 to 140 GB in less than 25 minutes: benchmarks/gpu.sh [FOLDER]
#
# doctor, the tests marked gpu, and one iteration of a Llama of random weights, beside its plan and
# the data sheet. Nothing is fetched. On a CPU: WIDTH=128 LAYERS=2 PROMPTS=16 DTYPE=float32 and so on.
#
#   WIDTH, LAYERS     of the policy: 2048 and 16 have 1.0 B weights, 4096 and 32 have 6.4 B
#   PROMPTS, SAMPLES  how many, and how many responses to each
#   PROMPT, RESPONSE  tokens
#   VARIANTS          settings to run the training with, one run each, such as
#                     "training.gradient_checkpointing=true training.gradient_checkpointing=false"
#   SKIP              of "doctor tests run", what to leave out
set -euo pipefail

cd "$(dirname "$0")/.."
FOLDER=${1:-$(mktemp -d)}
PYTHON=${PYTHON:-.venv/bin/python}
WIDTH=${WIDTH:-2048}
LAYERS=${LAYERS:-16}
PROMPTS=${PROMPTS:-256}
SAMPLES=${SAMPLES:-8}
PROMPT=${PROMPT:-1024}
RESPONSE=${RESPONSE:-256}
VOCABULARY=${VOCABULARY:-32000}
DTYPE=${DTYPE:-bfloat16}
VARIANTS=${VARIANTS:-run=gpu}
SKIP=${SKIP:-}
export HF_HUB_OFFLINE=1 DO_NOT_TRACK=1

wind() { "$PYTHON" -m flows.cli "$@"; }
title() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
wanted() { [[ " $SKIP " != *" $1 "* ]]; }

mkdir -p "$FOLDER"
if wanted doctor; then
    title "wind doctor"
    wind doctor --root "$FOLDER/store"
fi

if wanted tests; then
    title "tests marked gpu"
    # exit code 5: none was collected
    "$PYTHON" -m pytest -q -m gpu -p no:randomly
fi

if wanted run; then
    title "a policy of random weights"
    "$PYTHON" benchmarks/gpu.py recipe "$FOLDER" --width "$WIDTH" --layers "$LAYERS" \
        --vocabulary "$VOCABULARY" --prompts "$PROMPTS" --samples "$SAMPLES" \
        --prompt-tokens "$PROMPT" --response-tokens "$RESPONSE" --dtype "$DTYPE"

    title "its plan"
    wind plan "$FOLDER/recipe.yaml"

    for variant in $VARIANTS; do
        title "one iteration, $variant"
        wind run "$FOLDER/recipe.yaml" --set "$variant"
        wind plan "$FOLDER/recipe.yaml" --set "$variant" --compare
    done

    title "beside the data sheet"
    "$PYTHON" benchmarks/gpu.py table "$FOLDER/store"
fi
title "done: $FOLDER"
