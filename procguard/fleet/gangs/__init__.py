"""Groups whose members fail and restart together.

`policy.py` says which groups exist, `decider.py` what follows (pure), `controller.py` applies it to the state. Start
with
`decider.py`.
"""
