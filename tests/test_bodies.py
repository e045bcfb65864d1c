"""Joints and body parts: small videos in the layouts of JHMDB and VIP, and their measures on known cases."""

import shutil
from functools import partial

import cv2
import numpy as np
import pytest
import scipy.io

from dulvos.checkpoints import load_encoder
from dulvos.errors import InputError
from dulvos.inference import encode
from dulvos.masks import write_mask
from dulvos.study.bodies import carry_joints, load_jhmdb, load_vip, mean_iou, pck
from dulvos.study.evaluation import evaluate
from tests.oracles import texture

JOINTS = np.array([[60.0, 50.0], [100.0, 90.0], [140.0, 60.0]])  # x, y in the first frame
STEP = np.array([8.0, 4.0])  # pixels a frame


def frames(count: int = 4) -> list[np.ndarray]:
    """A texture that moves by STEP."""
    picture = texture(1, 160, 240)
    return [np.roll(picture, (int(t * STEP[1]), int(t * STEP[0])), (0, 1)) for t in range(count)]


@pytest.fixture
def jhmdb(tmp_path):
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/walk_test_split1.txt").write_text("one.avi 2\ntrained.avi 1\n")
    (tmp_path / "Rename_Images/walk/one").mkdir(parents=True)
    for t, frame in enumerate(frames()):
        cv2.imwrite(str(tmp_path / f"Rename_Images/walk/one/{t + 1:05d}.png"), frame[..., ::-1])
    truth = JOINTS + np.arange(4)[:, None, None] * STEP  # [T, J, 2]
    (tmp_path / "joint_positions/walk/one").mkdir(parents=True)
    scipy.io.savemat(tmp_path / "joint_positions/walk/one/joint_positions.mat",
                     {"pos_img": truth.transpose(2, 1, 0) + 1})
    return tmp_path


def test_joints_follow_what_they_lie_on(jhmdb):
    video, = load_jhmdb(jhmdb)
    assert (video.name, video.joints.shape, len(video.video)) == ("walk/one", (4, 3, 2), 4)
    np.testing.assert_allclose(video.joints[1], JOINTS + STEP)
    found = carry_joints(video.video.frames(), video.joints[0], partial(encode, load_encoder("davis2016")))
    assert found.shape == (4, 3, 2)
    cell = np.array([240, 160]) / 40
    assert (np.abs(found[0] - video.joints[0]) <= cell).all(), "read where they were written"
    assert pck([(found, video.joints)], 0.2) == 100
    still = np.repeat(found[:1], 4, 0)
    assert pck([(found, video.joints)], 0.1) > pck([(still, video.joints)], 0.1)


def test_pck_counts_joints_within_a_share_of_the_box():
    truth = np.zeros((3, 2, 2))
    truth[:, 1] = 30, 40  # the diagonal is 50, so PCK@.1 allows 3 pixels
    found = truth.copy()
    found[0] += 99  # the first frame does not count
    found[1, 0, 0], found[2, 0, 0] = 3, 3.1
    found[2, 1] = np.nan  # lost; the box of one joint has no size
    assert pck([(found, truth)], 0.1) == pytest.approx(100 * (0.5 + 1) / 2)
    assert pck([(truth, truth), (found, truth)], 0.1) == pytest.approx(100 * (0.75 + 1) / 2)
    assert pck([(found, truth[:2])], 0.1) == 100  # the last frame has no true joints


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda root: shutil.rmtree(root / "splits"), "splits"),
    (lambda root: shutil.rmtree(root / "Rename_Images"), "walk/one"),
    (lambda root: (root / "joint_positions/walk/one/joint_positions.mat").write_bytes(b"x"), "positions.mat"),
    (lambda root: (root / "Rename_Images/walk/one/00001.png").unlink(), "mat.*4, 3, 2.*3 frames"),
])
def test_a_broken_copy_of_jhmdb_is_named(jhmdb, spoil, message):
    spoil(jhmdb)
    with pytest.raises(InputError, match=message):
        load_jhmdb(jhmdb)


def test_parts_are_carried_and_scored_over_all_videos(tmp_path):
    root = tmp_path / "VIP_Fine"
    (root / "lists").mkdir(parents=True)
    (root / "lists/val_videos.txt").write_text("videos1\nvideos2\n")
    for name, shift in (("videos1", 0), ("videos2", 16)):
        for t in range(3):
            path = root / "Images" / name / f"{t:012d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), texture(3, 48, 64))
            ids = np.zeros((48, 64), np.uint8)
            ids[8:24, 8 + shift: 24 + shift] = 2
            ids[24:40, 8:40] = 5 if t else 2
            write_mask(root / "Annotations/Category_ids" / name / f"{t:012d}.png", ids)
    dataset = load_vip(tmp_path)
    evaluate(dataset, "copy", tmp_path / "out")
    # part 2 is copied over part 5 in two of three frames
    area, wrong = 3 * 256, 2 * 512
    iou = {0: 1, 2: (area + 512) / (area + 512 + wrong), 5: 0}
    assert mean_iou(dataset, tmp_path / "out") == pytest.approx(100 * np.mean(list(iou.values())))
    (root / "Annotations/Category_ids/videos2/000000000001.png").unlink()
    with pytest.raises(InputError, match="videos2/000000000001.png"):
        evaluate(load_vip(tmp_path), "copy", tmp_path / "other")
