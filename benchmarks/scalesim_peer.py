"""What runs in SCALE-Sim's environment: ``python scalesim_peer.py CONFIG LAYERS LAYOUT OUT`` prints processor time."""

from __future__ import annotations

import sys
import time


def main(words: list[str]) -> None:
    """Simulate the layers and print the processor time that it took, without that to import."""
    from scalesim.scale_sim import scalesim

    config, topology, layout, out = words
    began = time.process_time()
    found = scalesim(
        save_disk_space=True, verbose=False, config=config, topology=topology, layout=layout, input_type_gemm=False
    )
    found.run_scale(top_path=out)
    print(f"seconds {time.process_time() - began}")


if __name__ == "__main__":
    main(sys.argv[1:])
