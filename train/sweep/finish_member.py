"""Ends a member as its run would end alone: files and report in its folder; and exports the best one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax

from jlora import combine
from jlora.files.bounded_json import read_json
from train.config.command import Flags
from train.config.run_config import RunConfig
from train.config.validate import validate
from train.devices.compile_ahead import CompiledAhead, Compiler
from train.run import folder as run_folder
from train.run import manifest
from train.run.recorder import Recorder
from train.sweep.config import BEST
from train.sweep.group import Group
from train.sweep.member import Member
from train.sweep.pad_adapters import cut, pad
from train.task.finish import finish
from train.task.protocol import EndedRun


def claim_member(group: Group, member: Member, known: dict[Any, dict[str, str]]) -> None:
    """Writes the first files of a run folder: config.yaml, environment.json and manifest.json.

    Args:
      known: the parts of manifests that members share, which take long to make; filled by the first call for each.
    """
    member.folder.mkdir(parents=True, exist_ok=True)
    if (member.folder / manifest.NAME).exists():
        return
    config, opened = member.config, member.opened
    if "base" not in known:
        known["base"] = manifest.manifest(config, group.base, {}, {}, ())["base"]
    if id(opened) not in known:
        known[id(opened)] = manifest.manifest(config, {}, {}, opened.contents, ())["data"]
    own = manifest.manifest(config, {}, cut_frozen(member), {}, member.lengths, opened.day)
    run_folder.claim(config, Flags(), opened.attention)
    run_folder.write_json(member.folder / manifest.NAME, own | {"base": known["base"], "data": known[id(opened)]})


def cut_frozen(member: Member) -> Any:
    """Returns the member's frozen leaves without padding."""
    return cut(combine(member.best.trainable, member.frozen), member.ranks)


def finish_member(group: Group, member: Member, recorder: Recorder, ended: str, *, is_offline: bool) -> None:
    """Writes the results of a member into its folder, report.json last.

    A member that has diverged gets a report only. `ended` says how and when it ended, for the report's entry `sweep`.
    """
    sweep = {"sweep": {"point": member.point.name, "values": member.point.values, "ended": ended}}
    if ended.startswith("diverged"):
        config = member.config
        found: dict[str, Any] = {
            "metrics": {},
            "best": None,
            "parameters": None,
            "seed": config.seed,
            "method": config.method,
        }
        run_folder.write_json(member.folder / "report.json", found | sweep)
        return
    report = finish(ended_run(group, member, member.config, is_offline=is_offline), recorder).report
    run_folder.write_json(member.folder / "report.json", report | sweep)


def export_best(group: Group, member: Member, config: RunConfig, *, is_offline: bool) -> None:
    """Writes the results of the best member into the sweep's folder `best`, with merged/ if the config says so.

    A run without an adapter is written to merged/ in any case.

    Args:
      member: restored from its last checkpoint.
      config: that of the sweep.
    """
    folder = Path(config.output_dir) / BEST
    values = manifest.flat(member.config) | {"output_dir": str(folder), "hub.push": config.hub.push}
    is_merged = config.export.merged or member.config.method != "lora"  # without an adapter there is nothing else
    of_best, _ = validate(values | {"export.merged": is_merged}, type(config))
    assert of_best is not None
    run_folder.delete(folder, run_folder.OURS)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "environment.json", manifest.NAME):
        shutil.copyfile(member.folder / name, folder / name)
    run_folder.claim(of_best, Flags(), member.opened.attention)
    lines = len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    with Recorder(folder, resume_step=member.step, resume_lines=lines) as recorder:
        report = finish(ended_run(group, member, of_best, is_offline=is_offline), recorder).report
    sweep = {"sweep": {"point": member.point.name, "values": member.point.values}}
    run_folder.write_json(folder / "report.json", report | sweep)


def ended_run(group: Group, member: Member, config: RunConfig, *, is_offline: bool) -> EndedRun:
    """Makes what `train.task.finish` takes: the member's run after its last step, its adapter without padding."""
    adapter = jax.device_put(cut(combine(member.best.trainable, member.frozen), member.ranks))

    def evaluate(adapter: Any, base: Any, batch: Any) -> Any:
        """Pads the adapter, so that one program evaluates all members."""
        return group.programs.evaluate_one(pad(adapter, group.form), base, batch)

    return EndedRun(
        task=group.task,
        config=config,
        opened=member.opened,
        adapted=dataclasses.replace(member.adapted, base=group.base),
        mesh=None,
        lengths=member.lengths,
        eval_step=CompiledAhead(evaluate, Compiler(), batch=2),
        adapter=adapter,
        folder=Path(config.output_dir),
        best=member.best,
        times={"train": member.seconds},
        offline=is_offline,
    )


def is_finished(config: RunConfig) -> bool:
    """Returns whether the run's report has been written, with its last entry."""
    file = Path(config.output_dir) / "report.json"
    return file.exists() and "sweep" in read_json(file)
