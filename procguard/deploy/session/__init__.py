"""The installer's session with one host: how it is opened and its messages.

Must not know what a deployment is. Start with `session.py`; `connector.py` opens it over SSH or on this machine,
`bundle.py` is the content that it sends.
"""
