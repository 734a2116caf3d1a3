"""Groups whose members fail and restart together.

`policy.py` knows which groups exist, `decider.py` decides (pure), `controller.py` applies decisions to the state.
Start with `decider.py`.
"""
