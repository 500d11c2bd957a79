"""The paper's experiments on our own implementation: what is run and measured, without pictures."""
