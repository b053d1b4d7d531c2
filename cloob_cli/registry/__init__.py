"""The zoo: known models, installed models, and the way from one to the other.

Start reading at `install.pull`, the whole of `cloob zoo pull`: `resolve` turns a target into an origin, `fetch` brings
its files here (`download` from addresses, `hub` from the Hugging Face Hub), and `install` makes a model folder of them.
`resolve.find_model` is what `--model NAME` goes through. `entries` reads `zoo/NAME.toml`, `inventory` lists models,
`paths` says where everything is kept.
"""
