import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.coco import CocoSplit, read_split
from data.errors import UserError
from data.industrial_dataset import IndustrialDataset, SampleKey, pixel_mean_std
from tests.support.coco_files import CocoFiles, data_config


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path, num_images=5).save()


@pytest.fixture
def split(files: CocoFiles) -> CocoSplit:
    return read_split("train", files.ann_file, files.img_folder)[0]


def _train(split: CocoSplit, seed: int = 0) -> IndustrialDataset:
    return IndustrialDataset(split, data_config(split.img_folder.parents[1]).train_dataloader, training=True, seed=seed)


def _val(split: CocoSplit) -> IndustrialDataset:
    return IndustrialDataset(split, data_config(split.img_folder.parents[1]).val_dataloader, training=False)


def test_validation_only_resizes(files: CocoFiles, split: CocoSplit) -> None:
    dataset = _val(split)
    assert len(dataset) == 5
    for index in range(5):
        sample = dataset[index]
        record = files.content["images"][index]
        original = Image.open(files.img_folder / record["file_name"])
        expected = np.asarray(original.resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), expected)
        assert sample.image_id == record["id"] and sample.orig_size_wh == (48, 40)
        truth = [a for a in files.content["annotations"] if a["image_id"] == record["id"]]
        assert sample.target["labels"].tolist() == [a["category_id"] - 1 for a in truth]
        boxes = torch.tensor([a["bbox"] for a in truth]) / torch.tensor([48, 40, 48, 40])
        boxes[:, :2] += boxes[:, 2:] / 2
        torch.testing.assert_close(sample.target["boxes"], boxes)


def test_a_sample_depends_on_seed_epoch_index_and_copy_alone(split: CocoSplit) -> None:
    dataset, key = _train(split), SampleKey(1, 0, 0)
    image = dataset[key].image
    torch.manual_seed(123)
    for same in (dataset[replace(key, batch=9)], pickle.loads(pickle.dumps(dataset))[key]):
        assert torch.equal(same.image, image)
    others = [dataset[replace(key, **{name: 3})] for name in ("epoch", "index", "copy")]
    assert not any(torch.equal(other.image, image) for other in (*others, _train(split, seed=1)[key]))


def test_mosaic_partners_come_from_the_whole_data_set(tmp_path: Path) -> None:
    """Each image has one grey of its own, so the mosaic of image 0 tells its partners."""
    files = CocoFiles(tmp_path, num_images=8, boxes_per_image=0)
    for index, record in enumerate(files.content["images"]):
        Image.new("RGB", (48, 40), (20 * (index + 1),) * 3).save(files.img_folder / record["file_name"])
    files.add_box(1, [0, 0, 48, 40], 1)
    files.save()
    split = read_split("train", files.ann_file, files.img_folder)[0]
    ops = [
        {
            "type": "Mosaic",
            "output_size": 32,
            "rotation_range": 0,
            "translation_range": [0, 0],
            "scaling_range": [1, 1],
        },
        {"type": "Resize", "size": [64, 64]},
    ]
    config = data_config(
        tmp_path,
        train_dataloader__dataset__transforms__ops=ops,
        train_dataloader__dataset__transforms__policy=None,
    )
    dataset = IndustrialDataset(split, config.train_dataloader, training=True)
    partners = set()
    for epoch in range(30):
        image = dataset[SampleKey(epoch, 0, 0)].image
        assert image[0, 16, 16] == 20
        partners |= {int(image[0, y, x]) for y, x in ((16, 48), (48, 16), (48, 48))}
    assert partners == {20 * k for k in range(1, 9)}


def test_crowd_boxes_are_not_trained_on(files: CocoFiles) -> None:
    files.content["annotations"][0]["iscrowd"] = 1
    split = read_split("train", files.save().ann_file, files.img_folder)[0]
    assert len(_val(split)[0].target["labels"]) == 1


def test_images_of_another_size_and_unreadable_ones_are_refused(files: CocoFiles, split: CocoSplit) -> None:
    Image.new("RGB", (10, 10)).save(path := files.img_folder / "train_2.png")
    for dataset in (_val(split), _train(split)):
        with pytest.raises(UserError, match=r"image 2 \(train_2.png\): the image is 10 x 10 pixels, but the annota"):
            dataset[1]
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"train_2.png: cannot be read as an image"):
        _train(split)[1]


def test_pixel_mean_and_std(tmp_path: Path) -> None:
    assert pixel_mean_std(data_config(tmp_path)) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    normalize = {"type": "Normalize", "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    ops = [{"type": "Resize", "size": [64, 64]}, normalize]
    config = data_config(
        tmp_path, train_dataloader__dataset__transforms__ops=ops, val_dataloader__dataset__transforms__ops=ops
    )
    assert pixel_mean_std(config) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
