"""The eager σ-GPT that speed is measured against, replaying recorded runs."""

import numpy as np
import pytest
import torch

from benchmarks.torch_sigma import Draws, SigmaTwin
from parity_tests import GOLDEN
from parity_tests.torch_gpt import GPT, GPTConfig


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "sigma" / "tiny_bias_perturbed.npz") as archive:
        return {name: torch.tensor(array) for name, array in archive.items()}


@pytest.fixture(scope="module")
def twin(golden):
    gpt = GPT(GPTConfig(2, 4, 32, 24, 65, bias=True, double=True))
    state = {
        name.removeprefix("param/"): array
        for name, array in golden.items()
        if name.startswith("param/")
    }
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    gpt.load_state_dict(state)
    return SigmaTwin(gpt)


class Recorded(Draws):
    """The draws of the recorded run of rejection sampling, step by step."""

    def __init__(self, golden):
        self.golden, self.missing = golden, []

    def order(self, prompt_mask_BT):
        return self.golden["full/order0"].long()

    def tokens(self, probabilities):
        step, R = len(self.missing), probabilities.shape[1]
        self.missing.append(R)
        return self.golden["full/sampled"][step, :, :R].long()

    def permutations(self, rows, R, device):
        # The first recorded column stood for the token before.
        noise = self.golden["full/perm_noise"][len(self.missing) - 1]
        return noise[:rows, 1 : R + 1].argsort(1)

    def uniforms(self, B, R, device):
        return self.golden["full/u"][len(self.missing) - 1, :B, :R]


def test_burst_replays_the_original(golden, twin):
    draws = Recorded(golden)
    known = golden["full/mask"] == 0
    N, (B, T), P = int(golden["full/norders"]), known.shape, int(known[0].sum())
    found = twin.burst(golden["full/idx"].long(), known, N, draws=draws)
    assert torch.equal(found.tokens_BT, golden["full/final"].long())
    assert found.iterations == int(golden["full/steps"])
    assert [T - R for R in draws.missing] == [P, *golden["full/n_known"][:-1]]
    assert found.forwards == 1 + 2 * found.iterations
    assert found.drafted == B * sum(draws.missing)
    assert found.verified == N * found.drafted


@pytest.mark.parametrize("correct", [False, True])
def test_draft_distribution(golden, twin, correct):
    P, order = int(golden["burst_P"]), golden["order"].long()
    seen = []

    class Watched(Draws):
        def order(self, prompt_mask_BT):
            return order

        def tokens(self, probabilities):
            seen.append(probabilities)
            return super().tokens(probabilities)

    known = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :P], True)
    torch.manual_seed(0)
    tokens = golden["tokens"].long()
    twin.burst(tokens, known, 3, correct_positions=correct, draws=Watched())
    name = "burst_logits_exact" if correct else "burst_logits_ref"
    assert (seen[0] - golden[name].softmax(-1)).abs().max() < 1e-5


def test_cached_generates_greedily_what_the_uncached_original_does(golden, twin):
    class Greedy(Draws):
        def order(self, prompt_mask_BT):
            return golden["gen_order"].long()

        def tokens(self, probabilities):
            return probabilities.argmax(-1)

    known = golden["gen_mask"] == 0
    found = twin.cached(golden["gen_idx"].long(), known, draws=Greedy())
    assert torch.equal(found.tokens_BT, golden["gen_greedy"].long())
    assert found.forwards == int((~known[0]).sum())
