"""What `data.py` measured, as a table in Markdown."""


def table(found: dict, max_length: int) -> str:
    """The figures for people."""
    lines = ["| loader | dialogues/s | images/s | peak MB, process | peak MB, worker |", "|---|---:|---:|---:|---:|"]
    for name, one in found["loader"].items():
        peak = one["peak MB"]
        lines.append(
            f"| {name} | {one['dialogues/s']} | {one['images/s']} | {peak['process']} | {peak['largest worker']} |"
        )
    packing, index = found["packing"], found["index"]
    return "\n".join(
        [
            *lines,
            "",
            f"Packing {packing['dialogues']} dialogues of the paper's blend to {max_length}: {packing['rows']} rows, "
            f"{100 * packing['real tokens']:.2f}% real tokens, planned in {packing['seconds to plan']} s.",
            f"Indexing {found['mimic file, bytes'] / 1e9:.2f} GB of MIMIC-IT: {index['seconds']} s, "
            f"peak {index['peak MB']['process']} MB.",
            f"Beside a plain loop: {100 * found['beside a plain loop']['ours / plain']:.0f}% of its speed.",
            *(
                f"{found[name]['rows']} {name}: {found[name]['CPU s']} CPU s to the first batch, peak "
                f"{found[name]['peak MB']['process']} MB."
                for name in ("many rows, first start", "many rows, later start")
            ),
        ]
    )
