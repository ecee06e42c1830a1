#!/bin/sh
# Fine-tune LLaMA, or any model too large for one device, with Chain of Hindsight under DeepSpeed ZeRO-3.
#
#   sh llama_train.sh 0,1,2,3 LLAMA_PATH [options...]    one process on each of these GPUs
#   sh llama_train.sh "" LLAMA_PATH [options...]         on all GPUs, or in two processes on the CPU
#
# LLAMA_PATH is a Hugging Face model folder, or a folder with llama-7b/ (the model) and tokenizer/ in it.
# Options and environment are those of train.sh; NPROC sets the number of processes where no ids are given.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

[ "$#" -ge 2 ] || fail 'two arguments are needed: sh llama_train.sh IDS LLAMA_PATH [options...], where IDS may be ""'
ids=$1
case $ids in
  *[!0-9,]*) fail "'$ids' is no list of GPU ids: write numbers with commas, such as 0,1,2,3, or \"\" for none" ;;
esac
path=${2%/}
shift 2

if [ -f "$path/config.json" ]; then
  set -- --model_name "$path" "$@"
elif [ -f "$path/llama-7b/config.json" ] && [ -d "$path/tokenizer" ]; then
  set -- --model_name "$path/llama-7b" --tokenizer_name "$path/tokenizer" "$@"
elif [ -d "$path" ]; then
  fail "$path holds neither config.json nor llama-7b/config.json and tokenizer/: convert LLaMA's own weights with \
transformers' convert_llama_weights_to_hf first"
else
  fail "$path is no folder: give a Hugging Face model folder after the ids (\"\" for none)"
fi

NPROC=${NPROC:-auto}
export NPROC
exec sh "$here/train.sh" "$ids" --deepspeed "$here/ds_config/zero3.json" "$@"
