"""The sizes that are measured. Imported by ours and by the reference's interpreter, so it imports nothing."""

OBS, ACTIONS = 50, 3  # a vector observation, discrete actions
EPISODE = 50

_SMALL = {"deter": 128, "blocks": 4, "hidden": 64, "units": 64, "stoch": 8, "classes": 8, "bins": 255}
_1M = {"deter": 512, "blocks": 8, "hidden": 64, "units": 64, "stoch": 32, "classes": 4, "bins": 255}
_12M = {"deter": 2048, "blocks": 8, "hidden": 256, "units": 256, "stoch": 32, "classes": 16, "bins": 255}

MODELS = {"micro": _SMALL, "micro-long": _SMALL, "1m": _1M, "12m": _12M}
REPLAYS = {"micro": (8, 16), "micro-long": (16, 64), "1m": (16, 64), "12m": (16, 64)}  # (B, T)
HORIZONS = {"micro": 10, "micro-long": 15, "1m": 15, "12m": 15}
