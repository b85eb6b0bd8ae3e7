"""Video: a scene as a GIF file."""

from pathlib import Path

from stages.cli.arguments import env_title
from stages.store.files import write_whole
from stages.store.load import AgentBatch
from stages.watch.canvas import write_gif
from stages.watch.frames import draw_frames
from stages.watch.scene import record_scene

PLAYERS = {"task": "tasker", "explore": "explorer", "random": "random actions"}


def write_video(path: Path, group: AgentBatch, seed: int, policy: str, rows: int, fps: float, eval_seed: int) -> None:
    """Play, draw and write; arguments as of scene.record_scene. Raises RunFolderError if the file cannot be written."""
    scene = record_scene(group, seed, policy, rows, eval_seed)
    env = env_title(group.config.env, group.config.env_args)
    title = f"{env}: {PLAYERS[policy]} of seed {seed} after {group.agent_steps[seed]:,} steps"
    write_whole(path, write_gif(draw_frames(scene, title), fps))
