"""What a configuration says about rooms above `ecggen.utils.config`, checked before any stage works."""

from __future__ import annotations

from ecggen.data.quality.flags import check_words
from ecggen.data.signal import effective_high
from ecggen.utils.config import Config, ConfigError, PreprocessConfig, WindowConfig


def check_config(config: Config) -> None:
    """Raise ConfigError for what a later stage would refuse: window flags, corners of the filter."""
    check_exclude(config.window)
    applied_high(config.preprocess, config.data.fs)


def check_exclude(config: WindowConfig) -> None:
    """Raise ConfigError for an unknown flag in config.exclude."""
    if wrong := check_words(config.exclude):
        raise ConfigError(f"window.exclude has {wrong}.")


def applied_high(config: PreprocessConfig, fs: float) -> float:
    """The upper corner of the filter at fs, in Hz. Raises ConfigError if it is not above the lower one."""
    high = effective_high(config.high_hz, fs)
    if config.low_hz >= high:
        raise ConfigError(
            f"preprocess.low_hz is {config.low_hz:g}: at data.fs = {fs:g} Hz it must lie below {high:g} Hz "
            "(the smaller of high_hz and 0.45 data.fs)."
        )
    return high
