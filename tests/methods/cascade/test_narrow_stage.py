"""Evidence that is narrow in few of many directions: `Auto` is right or not trusted."""

import pytest
from bent_problem import bent, exact_log_evidence

import crosscoding as cc

VALUES = (0.2, 1.5)


def decodes_of(posterior: cc.Posterior, name: str) -> float:
    return sum(float(stage.decodes.sum()) for stage in posterior.trace if stage.name == name)


def test_a_narrow_element_that_bends_a_little_is_trusted_and_right():
    posterior = cc.infer(bent(0.3, VALUES, latent_dim=40), seed=0)
    assert decodes_of(posterior, "narrow") > 0
    assert posterior.trusted.all()
    assert ((posterior.log_evidence - exact_log_evidence(0.3, VALUES)).abs() < 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("bend", [0.0, 0.3, 1.0])
def test_narrow_elements_that_bend_or_fold_are_right_or_not_trusted(bend, folded):
    posterior = cc.infer(bent(bend, VALUES, folded=folded, latent_dim=40), seed=1)
    gap = (posterior.log_evidence - exact_log_evidence(bend, VALUES, folded=folded)).abs()
    assert ((gap < 0.12) | ~posterior.trusted).all()


@pytest.mark.slow
def test_the_answer_of_a_query_does_not_depend_on_others():
    both = cc.infer(bent(0.3, VALUES, latent_dim=40), seed=0)
    alone = cc.infer(bent(0.3, VALUES[1:], latent_dim=40), seed=0)
    assert (both.log_evidence[1] - alone.log_evidence[0]).abs() < 1e-3
