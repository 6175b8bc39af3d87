"""A loaded model as an HTTP service; docs/serving.md says how it is used.

A request becomes rows of pieces (`abilities`), rows wait in a bounded queue and are computed in
batches (`batching`) by whoever has the model (`backend`), and what comes out becomes the answer.
`app` puts these behind addresses, `guard` in front of them holds the limits.
"""
