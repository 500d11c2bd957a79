"""Trains the models of the zoo and writes them to folders."""
