"""Train DEIMv2 with class texts in its scores, from a detector trained without (phase 2).

`python train_deimv2_multimodal.py -c configs/deimv2_industrial_multimodal.yml -r outputs/.../best.pth`: -r with a
checkpoint of train_deimv2.py starts phase 2 in a new run folder, with one of phase 2 it goes on exactly.
"""

import sys
from functools import partial

from data.script import leaving_quietly, run_script

with leaving_quietly():
    from train_deimv2 import main

if __name__ == "__main__":
    sys.exit(run_script(partial(main, description=__doc__, phase=2)))
