import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.support.training import lm_folders, tiny_lm
from train.artifacts.model_card import Facts, model_card
from train.cli.arguments import PARSERS

FACTS = Facts(
    name="sst2-minilm",
    where="me/sst2-minilm",
    method="lora",
    problem_type="single_label_classification",
    base_model="FacebookAI/roberta-base",
    base_model_id="FacebookAI/roberta-base",
    dataset="stanfordnlp/sst2",
    dataset_id="stanfordnlp/sst2",
    labels=["negative", "pos: 'very'"],
    results={"validation": {"accuracy": 0.93125, "mcc": 0.85, "loss": 0.2}, "test": {"accuracy": 0.92}},
    command="jlora classify --config configs/sst2.yaml 'data.text=my text'",
    lora={"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
    versions={"jlora": "0.1.0", "jax": "0.10.2"},
)
KINDS = ["merged", "adapter"]


def _python(card):
    return re.search(r"```python\n(.*?)\n```", card, re.DOTALL).group(1)


@pytest.mark.parametrize(("kind", "library"), [("merged", "transformers"), ("adapter", "peft")])
def test_the_hub_reads_the_front_matter(kind, library):
    data = ModelCard(model_card(FACTS, kind)).data
    assert (data.base_model, data.library_name) == (FACTS.base_model_id, library)
    assert data.datasets == [FACTS.dataset_id]
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["lora", "jlora"]
    assert data.metrics == ["accuracy", "matthews_correlation"]
    assert data.model_name == FACTS.name
    read = {(r.dataset_split, r.metric_name): r.metric_value for r in data.eval_results}
    assert read == {(split, metric): value for split, m in FACTS.results.items() for metric, value in m.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_on_the_hub_is_named_in_the_text_only(kind):
    facts = dataclasses.replace(FACTS, base_model="./weights", base_model_id=None, dataset="my.csv", dataset_id=None)
    card = model_card(facts, kind)
    front = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in front
    assert "datasets" not in front
    assert "`./weights`" in card
    assert "`my.csv`" in card


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_holds_command_results_labels_settings_and_versions(kind):
    card = model_card(FACTS, kind)
    assert f"```bash\n{FACTS.command}\n```" in card
    assert "| validation | accuracy | 0.9313 |" in card
    assert "| test | accuracy | 0.9200 |" in card
    assert "1 = pos: 'very'" in card
    assert "jax 0.10.2" in card
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL).group(1)) == FACTS.lora


_PLACE = "/home/somebody/their data"


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_that_is_uploaded_has_no_path_of_the_machine(kind):
    facts = dataclasses.replace(
        FACTS,
        base_model_id=None,
        base_model="minilm",  # as shipping.base_name has it then
        dataset=f"{_PLACE}/a.csv, {_PLACE}/b.csv, stanfordnlp/sst2",
        command=f"jlora classify --config {_PLACE.split()[0]}/c.yaml 'data.train=[{_PLACE}/a.csv,{_PLACE}/b.csv]'"
        f" 'output_dir={_PLACE}/run' model=~/models/minilm lora.r=4",
    )
    card = model_card(facts, kind)
    assert "somebody" not in card
    assert "their data" not in card
    assert "trained on `a.csv, b.csv, stanfordnlp/sst2`" in card
    assert "jlora classify --config c.yaml 'data.train=[a.csv,b.csv]' output_dir=run model=minilm lora.r=4" in card


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_with_a_space_is_quoted_for_the_shell(kind):
    card = model_card(dataclasses.replace(FACTS, where="my runs/it's"), kind)
    (line,) = re.findall("^jlora predict.*$", card, re.MULTILINE)
    assert PARSERS["predict"]().parse_args(shlex.split(line)[2:]).model == "my runs/it's"


@pytest.mark.parametrize("method", ["full", "head"])
def test_without_lora_the_card_does_not_speak_of_it(method):
    card = model_card(dataclasses.replace(FACTS, method=method, lora={}), "merged")
    assert re.search(r"(?<!j)lora", card, re.IGNORECASE) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_without_evaluation_has_a_card(kind):
    front = yaml.safe_load(model_card(dataclasses.replace(FACTS, results={}), kind).split("---")[1])
    assert "model-index" not in front
    assert "metrics" not in front


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny BERT with a tokenizer, and a PEFT adapter for it."""
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import transformers

    root = tmp_path_factory.mktemp("card")
    vocabulary = root / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "sentence"]))
    tokenizer = transformers.BertTokenizer(str(vocabulary))
    config = transformers.BertConfig(
        vocab_size=7,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=2,
    )
    base = transformers.BertForSequenceClassification(config)
    base.save_pretrained(root / "merged")
    tokenizer.save_pretrained(root / "merged")
    settings = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    peft.get_peft_model(base, settings).save_pretrained(root / "adapter")
    tokenizer.save_pretrained(root / "adapter")
    return root


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's call, transformers' warning
@pytest.mark.parametrize("pair", [None, ("a question", "b")])
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_in_the_card_runs(kind, pair, folders, capsys):
    facts = dataclasses.replace(FACTS, pair=pair, where=str(folders / kind), base_model=str(folders / "merged"))
    names = {}
    card = model_card(facts, kind)
    exec(_python(card), names)
    assert ("Another one." in card) is ("--text 'a question' --text-pair b" in card) is (pair is not None)
    if kind == "adapter":
        assert names["logits"].shape == (1, 2)
        assert names["model"].config.id2label == {0: "negative", 1: "pos: 'very'"}
    else:
        assert "score" in capsys.readouterr().out


def test_dora_and_a_start_out_of_the_weights_are_named():
    facts = dataclasses.replace(FACTS, lora={"r": 8, "use_dora": True, "init_lora_weights": "pissa"})
    adapter, merged = (model_card(facts, kind) for kind in ("adapter", "merged"))
    assert "- Method: DoRA: " in adapter
    assert "- Rank: twice the r of the training; pissa" in adapter
    assert "- Rank" not in merged


LM_FACTS = dataclasses.replace(
    FACTS,
    problem_type=None,
    labels=(),
    results={"validation": {"loss": 1.5, "perplexity": 4.4817, "token_accuracy": 0.61}},
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_models_card_for_the_hub(kind):
    card = model_card(LM_FACTS, kind)
    data = ModelCard(card).data
    assert data.pipeline_tag == "text-generation"
    assert data.metrics == ["accuracy", "perplexity"]
    read = {result.metric_name: result.metric_value for result in data.eval_results}
    assert read == LM_FACTS.results["validation"]
    assert "- Task: text generation\n" in card
    assert "Labels" not in card
    assert 'jlora generate --model me/sst2-minilm --prompt "' in card


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_in_a_language_models_card_runs(kind, chat, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    run = lm_folders.run_folder()
    facts = dataclasses.replace(LM_FACTS, where=str(run / kind), base_model=str(tiny_lm.model_folder()), chat=chat)
    card = model_card(facts, kind)
    names = {}
    exec(_python(card), names)
    assert names["inputs"]["input_ids"].shape[1] == (50 if chat else 30)
    assert capsys.readouterr().out.startswith("[user]What is the" if chat else "What is the capital of France?")
    assert ("--chat" in card) is chat


def test_a_gguf_base_is_named_beside_its_folder():
    card = model_card(dataclasses.replace(LM_FACTS, base_model="/models/a.gguf"), "adapter")
    assert "AutoModelForCausalLM.from_pretrained('/models/', gguf_file='a.gguf')" in card


def test_the_documentation_shows_the_cards_own_lines():
    page = (Path(__file__).parents[3] / "docs" / "lm.md").read_text()
    shown = re.search(r"```text\n(tokenizer = .*?)\n```", page, re.DOTALL).group(1)
    base = "HuggingFaceTB/SmolLM2-135M-Instruct"
    facts = dataclasses.replace(FACTS, problem_type=None, where="runs/mine/adapter", base_model=base, tokens=49154)
    assert shown.replace('"', "'") in _python(model_card(facts, "adapter"))
