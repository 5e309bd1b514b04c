"""What a configuration says about rooms above `ecggen.utils.config`, checked before any stage works."""

from __future__ import annotations

from ecggen.data.quality.flags import check_words
from ecggen.data.signal import effective_high
from ecggen.utils.config import Config, ConfigError


def check_config(config: Config) -> None:
    """Raise ConfigError for what a later stage would refuse: window flags, corners of the filter."""
    if wrong := check_words(config.window.exclude):
        raise ConfigError(f"window.exclude has {wrong}.")
    pre, high = config.preprocess, effective_high(config.preprocess.high_hz, config.data.fs)
    if pre.low_hz >= high:
        raise ConfigError(
            f"preprocess.low_hz is {pre.low_hz:g}: at data.fs = {config.data.fs:g} Hz it must lie below "
            f"{high:g} Hz (the smaller of high_hz and 0.45 data.fs)."
        )
