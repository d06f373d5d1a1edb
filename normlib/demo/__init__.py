"""Handwritten digits, read by a recurrent network with each normalizer in turn.

`experiment` runs it, and needs the packages of ``pip install 'normlib[demo]'``; `optimizer` and
`loss` need NumPy alone.
"""
