from tests.support.training.lm_data import CHAT, byte_tokenizer, chats, pairs, real_tokenizer, texts
from train.lm.data.packing import pack
from train.lm.data.preview import preview
from train.lm.data.tokenize import tokenize_texts


def test_what_is_not_learnt_is_marked_and_special_tokens_are_shown():
    tokenizer = byte_tokenizer()
    shown = preview(tokenize_texts(chats(tokenizer, CHAT), tokenizer), tokenizer, 3)
    legend, row = shown.split("\n\n")
    assert legend.startswith("«...» is read but not learnt")
    assert row == "--- row 1: 26 tokens, 3 learnt ---\n«<start>[user]Hi<end>\n[assistant]»Ho<end>«\n»"


def test_only_so_many_rows_are_shown():
    tokenizer = byte_tokenizer()
    examples = tokenize_texts(texts("ab", "cd", "ef"), tokenizer)
    assert preview(examples, tokenizer, 2).split("\n\n")[1:] == [
        "--- row 1: 3 tokens, 2 learnt ---\n«a»b<end>",
        "--- row 2: 3 tokens, 2 learnt ---\n«c»d<end>",
    ]


def test_packed_examples_stand_one_below_another():
    tokenizer = byte_tokenizer()
    packed = pack(tokenize_texts(pairs(("a", "b"), ("cd", "ef")), tokenizer), 10)
    assert preview(packed, tokenizer, 5).split("\n\n")[1:] == [
        "--- row 1: 8 tokens, 5 learnt, 2 examples that do not see each other, 2 padding ---\n"
        "[1] «cd»ef<end>\n[2] «a»b<end>"
    ]


def test_without_its_marks_a_preview_is_the_text():
    tokenizer = real_tokenizer()
    pair = ("Why is the sky blue?\n", "Because of\n  Rayleigh scattering 🙂.")
    shown = preview(tokenize_texts(pairs(pair), tokenizer), tokenizer, 1).partition("---\n")[2]
    assert shown == f"«{pair[0]}»{pair[1]}<|im_end|>"
