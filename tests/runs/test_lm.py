"""The command from end to end, on a model and files that are tiny."""

from __future__ import annotations

import datetime
import json
import math
from types import SimpleNamespace

import pytest

from tests.support.models.encoder_cases import difference
from tests.support.training import tiny, tiny_lm
from tests.support.training.lm_data import TEMPLATE
from train.lm import __main__ as lm
from train.run import folder as run_folder
from train.run import lock, manifest


def test_it_learns_what_there_is_to_learn(tmp_path, capsys):
    """The letters of a dozen words: the loss falls from that of 258 tokens to about that of the letters there are."""
    learning = ["train.learning_rate=1e-2", "train.max_steps=60", "lora.modules_to_save=[lm_head]"]
    run = tiny_lm.train(tmp_path / "run", *learning, "train.eval_every=20", "train.log_every=20")
    found = tiny.report(run)["metrics"]
    assert _losses(run, "validation/loss")[-1] < math.log(20)
    assert found["validation"]["loss"] == pytest.approx(min(_losses(run, "validation/loss")), rel=1e-6)
    assert found["merged"]["loss"] == pytest.approx(found["validation"]["loss"], rel=1e-4)
    assert found["validation"]["perplexity"] == pytest.approx(math.exp(found["validation"]["loss"]))
    assert "Talk to it: jlora generate" in capsys.readouterr().err


def test_a_run_leaves_all_that_it_should():
    run = tiny_lm.finished_run()
    expected = {*run_folder.OURS, lock.NAME} - {"adapter.gguf", "predictions.csv", "wandb", "trackio"}
    assert {path.name for path in run.iterdir()} == expected
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert names <= {path.name for path in (run / "adapter").iterdir()}
    assert {"README.md", "config.json", "model.safetensors"} <= {path.name for path in (run / "merged").iterdir()}
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3
    assert all(set(sample) == {"prompt", "base", "tuned"} for sample in samples)
    assert any(sample["base"] != sample["tuned"] for sample in samples)


def test_what_it_leaves_is_what_transformers_and_peft_open():
    """Logits of merged/ and of adapter/ on its base, by PyTorch, are the same."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    run = tiny_lm.finished_run()
    base = AutoModelForCausalLM.from_pretrained(tiny_lm.model_folder())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = base(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(run / "merged")(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, run / "adapter").eval()(ids).logits
    assert difference(adapted.numpy(), merged.numpy()) < 1e-5
    assert difference(before.numpy(), merged.numpy()) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        ["quantize=nf4", "lora.use_dora=true", "train.remat=true"],
        ["quantize=int8", "lora.use_rslora=true", "export.dtype=bfloat16"],
        ["quantize=nf4", "lora.init_lora_weights=loftq"],
        ["lora.init_lora_weights=olora", "train.dtype=bfloat16"],
        ["method=full", "data.packing=true", "train.gradient_accumulation_steps=2"],
        ["export.gguf_lora=true", "lora.lora_dropout=0.1", "data.packing=true"],
    ],
)
def test_it_ends_well_with(settings, tmp_path):
    run = tiny_lm.train(tmp_path / "run", *settings)
    found = tiny.report(run)["metrics"]
    assert found["merged"]["loss"] == pytest.approx(found["validation"]["loss"], rel=0.05)
    assert (run / "adapter.gguf").exists() == ("export.gguf_lora=true" in settings)


def test_chats_learn_the_assistants_turns_alone(tmp_path, capsys):
    run = tiny_lm.train(tmp_path / "run", "data.completion_only_loss=true", data=tiny_lm.chats_file())
    report = tiny.report(run)
    assert 0 < report["learnt_tokens"]["train"] < report["tokens"]["train"] / 2
    assert "messages" in capsys.readouterr().err


def test_a_preview_writes_nothing(tmp_path, capsys):
    arguments = tiny_lm.arguments(
        tmp_path / "run", "--preview", "data.completion_only_loss=true", data=tiny_lm.chats_file()
    )
    assert tiny.call(lm.main, arguments) == 0
    assert "«<start>[user]sea<end>\n[assistant]»seasea<end>«" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_needs_neither_weights_nor_data(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_lm.model_folder() / "config.json").read_bytes())
    for more in ([], ["quantize=nf4", "data.packing=true"], ["method=full"]):
        arguments = tiny_lm.arguments(tmp_path / "run", "--dry-run", *more, model=folder, data=tmp_path / "none.txt")
        assert tiny.call(lm.main, arguments) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in ("trainable", "activations", "logits", "optimizer", "TFLOP"))
    assert not (tmp_path / "run").exists()


def _losses(run, name):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.format=text", "data.text=body", "data.train={chats}"], "expected a column 'body' (data.text)"),
        (["train.eval_evry=3"], "did you mean train.eval_every"),
        (["data.max_length=200"], "at most 128 tokens a row"),
        (["model={bert}"], "expected a causal language model"),
        (["quantize=nf4", "method=full"], "quantize: expected null"),
        (["lora.target_modules=[k_porj]"], "k_proj"),
        (["data.completion_only_loss=true"], "expected prompts and completions, or chats"),
    ],
)
def test_bad_input_ends_on_one_screen_and_writes_nothing(arguments, message, tmp_path, capsys):
    places = {"chats": tiny_lm.chats_file(), "bert": tiny.model_folder()}
    given = [argument.format(**places) for argument in arguments]
    assert tiny.call(lm.main, tiny_lm.arguments(tmp_path / "run", *given)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) < 25
    assert not (tmp_path / "run").exists()


def test_a_chat_template_with_a_clock_does_not_stop_a_resumed_run(tmp_path, monkeypatch):
    """A template that writes the date writes the same one when the run goes on nine days later."""

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=9)

    template = tmp_path / "clock.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }} " + TEMPLATE)
    given = [f"data.chat_template={template}", "data.max_length=64", "export.merged=false"]
    run = tiny_lm.train(tmp_path / "run", *given, data=tiny_lm.chats_file())
    later = SimpleNamespace(datetime=Later, date=datetime.date, UTC=datetime.UTC)
    monkeypatch.setattr(manifest, "datetime", later)
    assert manifest.run_day(run, resume=True) < manifest.run_day(run, resume=False)
    tiny_lm.train(run, *given, "train.max_steps=3", "--resume", data=tiny_lm.chats_file())
    started = json.loads((run / "manifest.json").read_text())["started"]
    assert started == {"day": manifest.run_day(run, resume=True).isoformat()}
