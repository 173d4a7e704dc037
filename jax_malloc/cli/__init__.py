"""The command line: plan, explain, compare and whatif, on files and JAX functions.

    python -m jax_malloc plan module.txt --accelerator=tpu_v5e --output=plan.json
    python -m jax_malloc explain plan.json fusion.12
    python -m jax_malloc compare slow.hlo.gz --xla=xla.hlo.gz --solvers=greedy,hybrid
    python -m jax_malloc whatif model:step --shapes='f32[128,512],bf16[512,512]'

`main` parses and ends with an exit code, `commands` are the four, `inputs` reads what
they are given, `output` writes what they say.
"""
