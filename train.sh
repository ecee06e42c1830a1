#!/bin/sh
# Fine-tune a model with Chain of Hindsight.
#
#   sh train.sh [options...]             one process: on the first GPU, or on the CPU where there is none
#   sh train.sh 0,1,2,3 [options...]     one process on each of these GPUs
#
# Options are those of `python -m coh.coh_train --help`; they win over the defaults below, and with --config the recipe
# stands in the defaults' place. Environment:
#   PYTHON                 the interpreter; otherwise .venv/bin/python if it is there, or python3
#   NPROC                  number of processes where no ids are given; `auto` is one per GPU, or 2 on the CPU
#   COH_ALLOW_CPU_IDS=1    ids stand for CPU processes on a machine without GPUs
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

# Words as a shell would read them again.
quote() {
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,+@%-]*) printf " '%s'" "$(printf '%s\n' "$word" | sed "s/'/'\\\\''/g")" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
}

# Which GPUs: the first argument, unless it is an option.
ids=
case ${1--} in
  -*) ;;
  *)
    ids=$1
    shift
    case $ids in
      ,* | *, | *,,* | *[!0-9,]*)
        fail "'$ids' is no list of GPU ids: write numbers with commas, such as 0,1,2,3, and options after them"
        ;;
    esac
    [ -z "$ids" ] || export CUDA_VISIBLE_DEVICES="$ids"
    ;;
esac

if [ -z "${PYTHON-}" ]; then
  PYTHON=python3
  if [ -x "$here/.venv/bin/python" ]; then PYTHON=$here/.venv/bin/python; fi
fi
seen=$("$PYTHON" -c 'import torch
print(torch.cuda.device_count(), torch.cuda.is_available() and torch.cuda.is_bf16_supported(False))') ||
  fail "$PYTHON cannot import torch: \`make setup\` makes .venv, or PYTHON names an interpreter that has it"
gpus=${seen% *}

# How many processes, and on what.
processes=${NPROC:-1}
if [ -n "$ids" ]; then
  processes=$(printf '%s\n' "$ids" | tr ',' '\n' | wc -l | tr -d ' ')
  [ "$(printf '%s\n' "$ids" | tr ',' '\n' | sort -u | wc -l)" -eq "$processes" ] || fail "'$ids' names a GPU twice"
  if [ "$gpus" -eq 0 ] && [ "${COH_ALLOW_CPU_IDS-}" != 1 ]; then
    fail "no GPU is there for the ids $ids: leave them out to train on the CPU, or set COH_ALLOW_CPU_IDS=1"
  fi
elif [ "$processes" = auto ]; then
  processes=$((gpus > 0 ? gpus : 2))
fi
case $processes in
  *[!0-9]* | 0) fail "NPROC is '$processes': give a number of processes, such as 2, or auto" ;;
esac
if [ "$gpus" -gt 0 ] && [ "$gpus" -lt "$processes" ]; then
  fail "$processes processes${ids:+ (ids $ids)} need a GPU each, and $gpus can be seen: ask for no more than that"
fi

# Of two equal options the later wins, so what the caller gave stays last. How a model learns is the program's to say:
# a run by this script and one by python -m are the same.
has_recipe=
has_precision=
for word in "$@"; do
  case $word in
    --config | --config=*) has_recipe=1 ;;
    --bf16 | --bf16=* | --fp16 | --fp16=*) has_precision=1 ;;
  esac
done
if [ -z "$has_recipe" ]; then
  if [ "${seen#* }" = True ] && [ -z "$has_precision" ]; then set -- --bf16 True "$@"; fi
  set -- --output_dir outputs/coh --save_total_limit 2 "$@"
fi

if [ -n "$ids${NPROC-}" ]; then
  # Without use_cpu, processes that find no GPU would each train alone.
  if [ "$gpus" -eq 0 ]; then set -- --use_cpu True "$@"; fi
  # The cores in equal shares; torchrun's own choice is one thread each.
  cores=$(getconf _NPROCESSORS_ONLN)
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}"
  set -- -m torch.distributed.run --standalone --nproc_per_node "$processes" -m coh.coh_train "$@"
else
  if [ "$gpus" -gt 1 ]; then
    # One process with several GPUs would split each batch over them (DataParallel), slower than one GPU alone.
    visible=${CUDA_VISIBLE_DEVICES:-0}
    export CUDA_VISIBLE_DEVICES="${visible%%,*}"
    echo "$gpus GPUs are there, and one is used: ids as first argument, such as 0,1, use more"
  fi
  set -- -m coh.coh_train "$@"
fi

export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
command=$(quote "$PYTHON" "$@")
printf '%s\n' "${CUDA_VISIBLE_DEVICES+CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES }${command# }"
exec "$PYTHON" "$@"
