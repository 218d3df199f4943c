"""The paper's three ways of making instructions (its section 3): LaMini-LM, Orca, Evol-Instruct, as pure functions."""
