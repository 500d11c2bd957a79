"""The paper's figures and comparisons; each module defines one or a few experiments."""
