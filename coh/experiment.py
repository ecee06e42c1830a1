"""Which model a run is about, and what is wrong between its options before anything expensive starts.

In: the command line's dataclasses. Out: `ExperimentArgs`, and sentences about options that do not fit each other.
"""

from dataclasses import dataclass, field

from coh.arguments import ConfigError
from coh.data.data_args import CoHDataArgs
from coh.data.forms import own_template
from coh.modeling import DTYPES, ModelError, load_config, load_tokenizer, problems_of
from coh.train_args import CoHTrainArgs


@dataclass
class ExperimentArgs:
    """Which model, and how the run is named."""

    model_name: str = field(
        default="gpt2",
        metadata={
            "help": "Hub id, folder or .gguf file of a causal language model; the default is small enough to try "
            "things."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer, where it does not lie with the model."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where downloads and prepared data are kept; by default the Hugging Face caches."},
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention of transformers: sdpa, eager, flash_attention_2, ...; by default the model's own "
            "choice, sdpa for most."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": f"Number format of the weights, one of {', '.join(DTYPES)}; float32 keeps small updates, and "
            f"--bf16 computes fast all the same."
        },
    )
    wandb_project_name: str | None = field(
        default=None, metadata={"help": "Project of the run in W&B, with --report_to wandb."}
    )
    wandb_run_name: str | None = field(
        default=None, metadata={"help": "Name of the run in W&B; by default --run_name."}
    )

    def __post_init__(self) -> None:
        problems = []
        if not self.model_name.strip():
            problems.append("--model_name is empty: give a hub id, a folder or a .gguf file.")
        if self.dtype not in DTYPES:
            problems.append(f"--dtype {self.dtype}: give one of {', '.join(DTYPES)}.")
        if problems:
            raise ConfigError(problems)


def cross_problems(experiment: ExperimentArgs, data: CoHDataArgs, train: CoHTrainArgs) -> list[str]:
    """What is wrong between the options: model, tokenizer and data against each other, before weights load."""
    try:
        config = load_config(experiment.model_name, experiment.cache_dir)
        tokenizer = load_tokenizer(experiment.tokenizer_name or experiment.model_name, experiment.cache_dir)
    except ModelError as error:
        return [str(error)]
    problems = problems_of(config, tokenizer, data.seq_length)
    if train.prepend_bos and tokenizer.bos_token_id is None:
        problems.append("--prepend_bos: the tokenizer has no bos_token; leave the option out.")
    if data.prompt_format == "chat":
        if not own_template(tokenizer):
            problems.append("--prompt_format chat: the tokenizer has no chat template; choose plain.")
        if train.prepend_bos:
            problems.append("--prepend_bos: with --prompt_format chat the chat template decides; leave the option out.")
    return problems
