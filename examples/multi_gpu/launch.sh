#!/usr/bin/env bash
# Select, label and train with all GPUs of a machine:   GPUS=4 bash examples/multi_gpu/launch.sh
# The processes share the work and keep the rows that one alone would keep. Killed and started again, it goes on.
# With torchrun instead:   LAUNCH="torchrun --nproc_per_node 4" bash examples/multi_gpu/launch.sh
set -euo pipefail
LAUNCH=${LAUNCH:-accelerate launch --config_file examples/multi_gpu/ddp.yaml --num_processes ${GPUS:-8}}

$LAUNCH -m trl_real.cli select --config examples/configs/select.yaml ${SELECT_FLAGS:---dtype bfloat16}
trl-real label --config examples/configs/label.yaml
$LAUNCH -m trl_real.cli train --config examples/configs/train.yaml \
    ${TRAIN_FLAGS:---model HuggingFaceTB/SmolLM2-135M-Instruct --bf16 True}
