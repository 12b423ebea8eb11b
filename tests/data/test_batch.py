import pickle
from multiprocessing.reduction import ForkingPickler

import torch

from data.batch import Batch, Target


def test_a_batch_travels_with_its_small_tensors_as_plain_bytes() -> None:
    """One shared file per batch, not one per tensor; also without boxes, and what arrives can be written to."""
    targets = [Target(labels=torch.arange(n), boxes=torch.rand(n, 4), area=torch.rand(n)) for n in (3, 0)]
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    batch = Batch(images, targets, [7, 9], torch.tensor([[5, 4], [50, 40]]))
    content = bytes(ForkingPickler.dumps(batch))
    assert content.count(b"rebuild_storage") == 1
    for copy in (pickle.loads(content), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(copy.images, images) and copy.image_ids == [7, 9]
        assert torch.equal(copy.orig_sizes_wh, batch.orig_sizes_wh) and copy.num_boxes == 3
        for old, new in zip(targets, copy.targets, strict=True):
            assert all(torch.equal(old[key], new[key]) and old[key].dtype == new[key].dtype for key in old)  # type: ignore[literal-required]
        copy.targets[0]["boxes"].mul_(2)
