import jax.numpy as jnp
import numpy as np
import pytest

from train.classify.loss import row_losses

_LOGITS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 3

CASES = {
    "single_label_classification": (_LOGITS, np.array([0, 2, 1, 1, 0, 2], np.int32)),
    "multi_label_classification": (_LOGITS, (_LOGITS[::-1] > 0.5).astype(np.float32)),
    "regression": (_LOGITS[:, :1], _LOGITS[::-1, 1].copy()),
}


@pytest.mark.parametrize("problem_type", CASES)
def test_the_mean_is_transformers_loss(problem_type):
    torch = pytest.importorskip("torch", reason="the oracle is transformers' loss")
    from transformers import BertConfig
    from transformers.loss.loss_utils import ForSequenceClassificationLoss

    logits, labels = CASES[problem_type]
    config = BertConfig(num_labels=logits.shape[1], problem_type=problem_type)
    wanted = torch.tensor(labels.astype(np.int64) if labels.dtype == np.int32 else labels)
    expected = ForSequenceClassificationLoss(wanted, torch.tensor(logits), config).item()
    losses = row_losses(problem_type, jnp.asarray(logits), jnp.asarray(labels))
    assert losses.shape == (6,)
    assert losses.dtype == jnp.float32
    assert float(losses.mean()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("problem_type", CASES)
def test_rows_do_not_touch_each_other(problem_type):
    logits, labels = map(jnp.asarray, CASES[problem_type])
    together = row_losses(problem_type, logits, labels)
    alone = [row_losses(problem_type, logits[i : i + 1], labels[i : i + 1])[0] for i in range(6)]
    assert np.allclose(together, alone, rtol=1e-6)
