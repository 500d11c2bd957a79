"""How the models of the zoo are trained and published."""
