"""How an action is generated: one generative family a file, with `loss` and `sample`."""
