"""The installer's session with one host: how it is opened, what is sent, what both say.

Must not know what a deployment is. Start with `session.py`; `connector.py` opens it over SSH or on this machine,
`bundle.py` is what it sends.
"""
