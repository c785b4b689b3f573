"""What an adapter cannot have on a model that is spread over several processes."""

from __future__ import annotations

from milora.adapters.config import SpectralConfig
from milora.errors import MiloraError
from milora.models.spread import hands_out_values, stays_on_cpu


def check_spread(config: SpectralConfig) -> None:
    """Refuse what would fail later, in all processes alike.

    Raises:
        MiloraError: positions drawn by the first process, which accelerate does not hand out; a weight dropped of
            which each process has a part.
    """
    if hands_out_values() and config.method == "svft" and config.pattern in ("random", "top_k"):
        raise MiloraError(
            f"pattern: got {config.pattern!r} with fsdp_cpu_ram_efficient_loading: true, allowed false there"
        )
    if stays_on_cpu() and config.drop_base:
        raise MiloraError("drop_base: got true with FSDP or ZeRO-3, which spread the base; allowed false")
