"""Compares the paper's methods with the exact answer on one digit.

    python examples/papers_figure.py

The digit is a seven with 5 % of its pixels observed, under a VAE with two latent dimensions. Prints
each method's log p(x) and log p(y|x). `crosscoding reproduce fig3` draws the whole figure.
"""

import crosscoding as cc

METHODS = {
    "GVI": cc.methods.Variational(cc.crosscoders.Gaussian()),
    "NF": cc.methods.Variational(cc.crosscoders.Planar(16)),
    "HMC": cc.methods.HMC(),
    "rejection": cc.methods.Rejection(),
    "grid": cc.methods.Grid(),
}


def main() -> None:
    vae = cc.zoo.load("mnist-2d")
    seven = cc.zoo.digits()[0][29]
    evidence = cc.Evidence(seven, cc.random_mask(vae.data_shape, 0.05, seed=0))
    print(f"{'method':12}{'log p(x)':>12}{'log p(y|x)':>14}  verdict")
    for name, method in METHODS.items():
        posterior = cc.condition(vae, evidence, method, seed=0)
        log_prob, _ = cc.query_log_prob(posterior, seven)
        log_evidence = posterior.log_evidence
        shown = "-" if log_evidence.isnan() else f"{log_evidence:.2f}"
        query = "-" if log_prob.isnan() else f"{log_prob:.2f}"
        print(f"{name:12}{shown:>12}{query:>14}  {posterior.verdicts[0].label}")


if __name__ == "__main__":
    main()
