"""What the real lerobot writes and reads; run by its own interpreter, see `test_lerobot_itself`.

    record FOLDER               record three episodes, whose numbers a test computes, too
    read FOLDER NPZ WINDOW      load by LeRobotDataset, with actions of WINDOW rows from each on
    train FOLDER                one step of LeRobot's own policy ACT; prints its loss

Its video decoders (torchcodec, or torchvision before 0.24) need other versions of torch than this package's, so that
frames are decoded by PyAV; which frame is wanted is decided by lerobot.
"""

import sys
from pathlib import Path

import av
import numpy as np
import torch
from lerobot.datasets import lerobot_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset

LENGTHS, FPS = (6, 4, 5), 10


def decoded(path, timestamps, tolerance_s, *_):
    """The frames nearest to time stamps, float (n, C, H, W), as lerobot's own decoder for torchvision takes them."""
    with av.open(str(path)) as file:
        frames = [
            (float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)
        ]
    times = np.array([time for time, _ in frames])
    nearest = [int(np.abs(times - second).argmin()) for second in timestamps]
    assert all(abs(times[n] - second) < tolerance_s for n, second in zip(nearest, timestamps, strict=True))
    return torch.stack([torch.from_numpy(frames[n][1]).permute(2, 0, 1) / 255 for n in nearest])


def record(folder):
    vector = {"dtype": "float32", "names": None}
    features = {
        "observation.state": vector | {"shape": (2,)},
        "action": vector | {"shape": (3,)},
        "observation.images.front": {"dtype": "video", "shape": (32, 48, 3), "names": ["height", "width", "channels"]},
        "observation.images.wrist": {"dtype": "image", "shape": (8, 6, 3), "names": ["height", "width", "channels"]},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("me/toy", FPS, features, root=folder, robot_type="toy", use_videos=True)
    row = 0
    for episode, length in enumerate(LENGTHS):
        for frame in range(length):
            values = {
                "observation.state": np.array([row, frame], np.float32),
                "action": np.array([30 * row, -frame, 0.5], np.float32),
                "observation.images.front": np.full((32, 48, 3), 20 + 15 * row, np.uint8),
                "observation.images.wrist": np.full((8, 6, 3), row, np.uint8),
                "next.success": np.array([episode == 1 and frame == length - 1]),
            }
            try:
                dataset.add_frame(values, task=f"task {episode}")
            except TypeError:  # since 0.4 the task is a value
                dataset.add_frame(values | {"task": f"task {episode}"})
            row += 1
        dataset.save_episode()
    getattr(dataset, "finalize", lambda: None)()


def opened(folder, window):
    lerobot_dataset.decode_video_frames = decoded
    fps = LeRobotDataset("me/toy", folder).fps
    wanted = {"action": [step / fps for step in range(window)], "observation.state": [-1 / fps, 0]}
    return LeRobotDataset("me/toy", folder, delta_timestamps=wanted, video_backend="pyav")


def read(folder, target, window):
    dataset = opened(folder, int(window))
    rows = [dataset[row] for row in range(len(dataset))]
    arrays = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0] if key != "task"}
    arrays["task"] = np.array([row["task"] for row in rows])
    stats = {
        f"stats/{key}/{kind}": np.asarray(x) for key, found in dataset.meta.stats.items() for kind, x in found.items()
    }
    np.savez(target, fps=dataset.fps, **arrays, **stats)


def train(folder):
    from lerobot.configs.types import FeatureType
    from lerobot.datasets.utils import dataset_to_policy_features
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    meta = LeRobotDataset("me/toy", folder).meta
    features = dataset_to_policy_features({key: f for key, f in meta.features.items() if not key.startswith("next.")})
    outputs = {key: feature for key, feature in features.items() if feature.type is FeatureType.ACTION}
    config = ACTConfig(
        input_features={key: feature for key, feature in features.items() if key not in outputs},
        output_features=outputs, chunk_size=4, n_action_steps=4, pretrained_backbone_weights=None, device="cpu",
        dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1, latent_dim=4, n_vae_encoder_layers=1,
    )  # fmt: skip
    lerobot_dataset.decode_video_frames = decoded
    wanted = {"action": [step / meta.fps for step in range(4)]}
    dataset = LeRobotDataset("me/toy", folder, delta_timestamps=wanted, video_backend="pyav")
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    policy = ACTPolicy(config, dataset_stats=meta.stats) if "2.1" in str(meta._version) else ACTPolicy(config)
    loss, _ = policy.forward(batch)
    loss.backward()
    print(loss.item())


if __name__ == "__main__":
    {"record": record, "read": read, "train": train}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
