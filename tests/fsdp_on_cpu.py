"""`coh.coh_train` where accelerate is made to use FSDP on the CPU, which it has for GPUs only: a program for tests.

Everything behind that choice is as on GPUs: torch's own `fully_shard`, accelerate's wrapping, the Trainer's saving.
"""

from functools import wraps

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

begin = AcceleratorState.__init__


@wraps(begin)
def begin_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState().distributed_type = self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    from coh.coh_train import main

    AcceleratorState.__init__ = begin_with_fsdp
    main()
