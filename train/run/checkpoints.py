"""Writes and restores a run's checkpoints with orbax: one atomic folder per step, written while training continues.

runs/sst2/checkpoints/120/ has the trained leaves, optimizer state, step, the best leaves so far, and notes (JSON) with
other values that are needed to resume and the checksum of each array. A damaged checkpoint is renamed to 120.damaged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jlora.errors import FileError, JloraError, RunFolderError
from jlora.tree.leaf_paths import leaves_by_path
from train.devices import processes
from train.devices.placement import copy_to_host
from train.run.best import Best
from train.run.checksum import checksums
from train.run.state import State

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Rest:
    """The loop's bookkeeping that a checkpoint stores in addition to the train state.

    Attributes:
      losses: of the steps that are not in a line of the record yet.
      unevaluated: whether the step's evaluation is due but was not made.
      lines: how many lines the record had.
    """

    losses: tuple[float, ...] = ()
    unevaluated: bool = False
    lines: int = 0


class Checkpoint(NamedTuple):
    """Everything that is needed to resume a run.

    Attributes:
      state: the train state.
      best: the best evaluation up to its step.
      rest: the loop's bookkeeping.
    """

    state: State
    best: Best
    rest: Rest = Rest()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False: the processes agree on where to stop with `Stop`, whose counter differs from steps."""
        return False


@contextmanager
def open_checkpoints(folder: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """Opens the run's checkpoints and keeps the newest `keep`; at the end it waits for unfinished writes.

    A context manager that yields orbax's manager, for `save` and `restore`. The folder is made if it does not exist,
    and incomplete checkpoints in it are deleted.

    Raises:
      JloraError: at the beginning or the end: the folder or a checkpoint cannot be written.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # incomplete checkpoints of a killed run
        # If folders were created in the background, a run that cannot create them would wait for minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with _explain_errors(folder):
        manager = _Manager(folder.resolve(), options=options)
    with _hush_late_reports():
        try:
            yield manager
        except BaseException:
            with suppress(Exception):  # has the same cause as the error that is being raised
                manager.close()
            raise
        with _explain_errors(folder):
            manager.close()


def save(manager: ocp.CheckpointManager, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint of the state's step in the background, after copying the arrays.

    Args:
      manager: from `open_checkpoints`.
      checkpoint: its `state.step` names the folder: checkpoints/120.

    Raises:
      JloraError: this checkpoint or the previous one cannot be written, or the run folder is not there any more.
    """
    state, best, rest = checkpoint
    arrays = _name_arrays(state, best.trainable)
    notes = {
        "best": {name: value for name, value in vars(best).items() if name != "trainable"},
        "rest": dataclasses.asdict(rest),
        "checksums": checksums(arrays),
    }
    args = ocp.args.Composite(
        arrays=ocp.args.StandardSave(copy_to_host(arrays)),
        notes=ocp.args.JsonSave({"notes": notes, "sha256": _sha256(notes)}),
    )
    folder = Path(manager.directory)
    if not folder.parent.is_dir():  # orbax would make it again
        raise _missing_folder(folder.parent)
    with _explain_errors(folder):
        manager.save(int(state.step), args=args)


def raise_failed_write(manager: ocp.CheckpointManager) -> None:
    """Raises JloraError if a checkpoint could not be written in the background."""
    with _explain_errors(Path(manager.directory)):
        manager.check_for_errors()


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until the newest checkpoint is complete; raises JloraError if it cannot be written."""
    with _explain_errors(Path(manager.directory)):
        manager.wait_until_finished()


def restore(manager: ocp.CheckpointManager, like: State) -> Checkpoint:
    """Restores the newest complete checkpoint to the devices of `like`.

    A checkpoint that cannot be read, or whose contents differ from what was written, is logged and set aside
    (120.damaged), and the previous one is used. The arrays of `like` are deleted first, to make room for those that are
    read. Without any checkpoint the result is Checkpoint(like, Best(a copy of like.trainable)), and `like` is not
    deleted.

    Args:
      manager: from `open_checkpoints`.
      like: a state with the structure, shapes and devices of the run.

    Raises:
      JloraError: there are checkpoints but none is complete, or they have other arrays than this run.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    if not steps:
        return Checkpoint(like, Best(copy_to_host(like.trainable)))
    wanted = {name: _template(name, leaf) for name, leaf in _name_arrays(like, like.trainable).items()}
    for leaf in jax.tree.leaves(like):
        leaf.delete()
    damaged: dict[int, str] = {}
    for step in steps:
        found = _read(manager, step, like, wanted)
        if not isinstance(found, str):
            _set_aside(manager, damaged, step)
            return found
        damaged[step] = found
    lines = "\n".join(f"  step {step}: {reason}" for step, reason in damaged.items())
    raise FileError(
        f"{manager.directory}: expected a whole checkpoint, found {len(damaged)} damaged\n{lines}\n"
        "Put them back from a copy, or start anew with --overwrite"
    )


def _read(manager: ocp.CheckpointManager, step: int, like: State, wanted: dict[str, Any]) -> Checkpoint | str:
    """Reads a checkpoint, or returns what is wrong with it; several processes get the same outcome."""
    notes = _read_or_reason(lambda: _notes(manager, step, wanted))
    if isinstance(notes, str):
        return notes
    arrays = _read_or_reason(
        lambda: manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))).arrays
    )
    if isinstance(arrays, str):
        return arrays
    arrays = dict(arrays)
    sums = checksums(arrays)
    other = [name for name, value in notes["checksums"].items() if sums[name] != value]
    if other:
        return f"{len(other)} of {len(sums)} arrays are not those that were written: {', '.join(other[:3])}"
    best, state = _fill_tree(like.trainable, "best/", arrays), _fill_tree(like, "state/", arrays)
    rest = notes["rest"] | {"losses": tuple(notes["rest"]["losses"])}
    return Checkpoint(state, Best(best, **notes["best"]), Rest(**rest))


def _notes(manager: ocp.CheckpointManager, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
    found = manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes
    if _sha256(found["notes"]) != found["sha256"]:
        raise ValueError("the notes are not those that were written")
    if other := sorted(found["notes"]["checksums"].keys() ^ wanted.keys()):
        raise RunFolderError(
            f"{manager.directory}/{step}: expected the arrays of this run, found others or not all:"
            f" {', '.join(other[:3])}. Another version wrote it: go on with that one, or start anew with --overwrite"
        )
    return found["notes"]


def _read_or_reason(read: Callable[[], Any]) -> Any:
    """Returns the result of `read`, or if it fails in any process, what is wrong with the file.

    Errors that do not show that the checkpoint is damaged are raised: a device without memory, a lost process, a file
    of another user.
    """
    reason, found = "", None
    try:
        found = read()
    except (JloraError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # orbax and its libraries raise exceptions of many types
        reason = _reason(error)
    if processes.all_agree(not reason):
        return found
    return reason or "another process cannot read it"


def _name_arrays(state: State, best: Any) -> dict[str, Any]:
    arrays = {f"state/{path}": leaf for path, leaf in leaves_by_path(state).items()}
    return arrays | {f"best/{path}": leaf for path, leaf in leaves_by_path(best).items()}


def _fill_tree(like: Any, prefix: str, arrays: dict[str, Any]) -> Any:
    """Builds the tree of `like` from the arrays with these names, and removes them from the dict."""
    leaves = [_copy_to_own_memory(leaf, arrays.pop(prefix + path)) for path, leaf in leaves_by_path(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _copy_to_own_memory(like: Any, array: Any) -> Any:
    """Copies the array to its own memory, because a donated array must not share a buffer with the reader.

    It is committed to its device only if `like` is: JAX compiles different programs for the two cases.
    """
    if not isinstance(array, jax.Array) or not array.is_fully_addressable:
        return array
    if not like.committed:
        return jnp.array(np.asarray(array))
    return jax.device_put(jnp.copy(array), like.sharding)


def _template(name: str, leaf: jax.Array) -> Any:
    """Returns the restore target of an array: sharded like `leaf` for the train state, else in host memory."""
    if name.startswith("state/"):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    if leaf.is_fully_addressable:
        return np.empty(leaf.shape, leaf.dtype)
    host = leaf.sharding.with_memory_kind("pinned_host")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host)


def _set_aside(manager: ocp.CheckpointManager, damaged: dict[int, str], used: int) -> None:
    if not damaged:
        return
    for step, reason in damaged.items():
        place = Path(manager.directory) / str(step)
        logger.warning("%s: damaged, set aside as %s.damaged, step %d is used: %s", place, step, used, reason)
        if processes.is_first():
            names = [place.with_name(f"{place.name}.damaged{number}") for number in ("", *range(2, 1000))]
            place.rename(next(name for name in names if not name.exists()))
    processes.wait_for_all("set aside")
    manager.reload()


def _sha256(notes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    """Returns the first line of the message, or the error's type if it has none.

    A long line loses its middle: paths come first, and the cause, such as a full disk, comes last.
    """
    line = f"{error}\n".strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= 1000 else f"{line[:500]} ... {line[-500:]}"


def _missing_folder(folder: Path) -> JloraError:
    return JloraError(
        f"{folder}: expected the run folder, found none. If it was moved, go on with --resume output_dir=FOLDER"
    )


@contextmanager
def _hush_late_reports() -> Iterator[None]:
    """Hides tracebacks that repeat an error of a write.

    After the first error of a write, TensorStore reports further ones to an event loop that orbax has already closed.
    Each of these reports would print a traceback on stderr.
    """
    shown = sys.unraisablehook

    def hook(found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and "Event loop is closed" in str(found.exc_value)):
            shown(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = shown


@contextmanager
def _explain_errors(folder: Path) -> Iterator[None]:
    """Turns errors of writing a checkpoint, which have many types, into a JloraError that says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # a lost process, a device without memory
        raise
    except (OSError, ValueError, RuntimeError) as error:
        parent = folder.parent
        if parent.is_dir() and not (parent / "config.yaml").exists():  # orbax has created a new folder
            raise _missing_folder(parent) from error
        raise JloraError(
            f"{folder}: a checkpoint could not be written: {_reason(error)}\n"
            "Those before it are whole. Free disk space or allow the folder to be written, then go on with --resume"
        ) from error
