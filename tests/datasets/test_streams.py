"""ROS bags and MCAP: refused with the script that writes them as rows, which is followed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands_of_docs import blocks
from refusals import open_here, refused
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore
from samples import encoded

from gtp_vision.datasets.validation import problems

pytestmark = pytest.mark.usefixtures("cache")
SECOND = 10**9
FRAMES = 12  # of the camera, at 10 Hz; joints and commands come twice as often, a little later
HINT = '"I have ROS bags or MCAP"'


def fill(writer: Any, form: Stores, image: str) -> None:
    """Write a camera, the joints and commands of two joints."""
    store = get_typestore(form)
    is_old = form is Stores.ROS1_NOETIC
    stamp = store.types["builtin_interfaces/msg/Time"](0, 0)
    header = store.types["std_msgs/msg/Header"](**({"seq": 0} if is_old else {}), stamp=stamp, frame_id="")

    def send(topic: str, message: str, time: int, /, **fields: Any) -> None:
        kind = f"sensor_msgs/msg/{message}"
        if topic not in known:
            known[topic] = writer.add_connection(topic, kind, typestore=store)
        serialize = store.serialize_ros1 if is_old else store.serialize_cdr
        writer.write(known[topic], time, serialize(store.types[kind](header=header, **fields), kind))

    known: dict[str, Any] = {}
    nothing = np.zeros(0)
    for row in range(FRAMES):
        time = SECOND + row * SECOND // 10
        frame = np.full((4, 6, 3), 20 * row, np.uint8) + np.arange(3, dtype=np.uint8)
        if image == "CompressedImage":
            data = np.frombuffer(encoded(frame), np.uint8)
            send("/camera", image, time, format="png", data=data)
        else:
            frame = frame[..., ::-1] if image == "bgr8" else frame
            padded = np.pad(frame.reshape(4, 18), [(0, 0), (0, 2)]).ravel()
            options = {"height": 4, "width": 6, "encoding": image, "is_bigendian": 0, "step": 20}
            send("/camera", "Image", time, data=padded, **options)
        for half in (0, 1):
            later = time + half * SECOND // 20
            for topic, delay, place in (("/joints", 1000, 0.01), ("/command", 2000, 0.02)):
                position = place * np.array([2 * row + half, -1.0])
                fields = {"position": position, "velocity": nothing, "effort": nothing}
                send(topic, "JointState", later + delay, name=["a", "b"], **fields)


def ros1(path: Path, image: str) -> Path:
    with rosbag1.Writer(path.with_suffix(".bag")) as writer:
        fill(writer, Stores.ROS1_NOETIC, image)
    return path.with_suffix(".bag")


def ros2(plugin: rosbag2.StoragePlugin) -> Callable[[Path, str], Path]:
    def write(path: Path, image: str) -> Path:
        with rosbag2.Writer(path, version=9, storage_plugin=plugin) as writer:
            fill(writer, Stores.ROS2_HUMBLE, image)
        return path

    return write


def mcap(path: Path, image: str) -> Path:
    folder = ros2(rosbag2.StoragePlugin.MCAP)(path.parent / "recorded", image)
    return next(folder.glob("*.mcap")).rename(path.with_suffix(".mcap"))


@pytest.mark.parametrize(
    ("write", "image", "what"),
    [
        (ros1, "rgb8", "it is a ROS 1 bag"),
        (ros2(rosbag2.StoragePlugin.SQLITE3), "bgr8", "it is a ROS 2 bag"),
        (ros2(rosbag2.StoragePlugin.MCAP), "CompressedImage", "it is a ROS 2 bag"),
        (mcap, "rgb8", "it is an MCAP file"),
    ],
    ids=["ROS 1", "SQLite", "MCAP", "MCAP alone"],
)
def test_streams_are_refused_and_become_rows_by_the_script(
    tmp_path: Path, write: Callable[[Path, str], Path], image: str, what: str
) -> None:
    (folder := tmp_path / "bags").mkdir()
    path = write(folder / "one", image)
    refused(path, what, HINT)
    refused(folder, f"in it lies {path.name}: ", HINT) if path.is_file() else None
    named: dict[str, Any] = {}
    for block in blocks("docs/data.md", "python"):
        if "def write(" in block or "def rosbag(" in block:
            exec(block, named)
    topics = {"front": "/camera", "joints": "/joints"}
    named["write"](tmp_path / "out.h5", [named["rosbag"](path, 10, topics, "/command")])
    store = open_here(tmp_path / "out.h5")
    assert problems(store) == []
    rows = np.arange(FRAMES - 1)
    # The clock begins with the first command, 2 us after the first frame: each row shows the frame and joints of then.
    np.testing.assert_array_equal(store.observations["front"][:, 0, 0, 1], 20 * rows + 1)
    np.testing.assert_allclose(store.observations["joints"], 0.01 * np.stack([2.0 * rows, -1 + 0 * rows], 1), rtol=1e-6)
    np.testing.assert_allclose(store.actions, 0.02 * np.stack([2.0 * rows, -1 + 0 * rows], 1), rtol=1e-6)


def test_a_bag_without_its_metadata_is_named(tmp_path: Path) -> None:
    path = ros2(rosbag2.StoragePlugin.SQLITE3)(tmp_path / "one", "rgb8")
    (path / "metadata.yaml").unlink()
    refused(path, "in it lies one.db3: it is an SQLite file, as ROS 2 writes its bags", HINT)
