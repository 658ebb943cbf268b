import torch

from sfvgen_planner.world_model.conditioning import (
    NUM_POSITION_PLANES,
    condition_planes,
    num_condition_planes,
    position_planes,
)


def planes(actions, actions_given=1.0, context_given=1.0, num_past=2):
    batch = len(actions)
    return condition_planes(
        num_past,
        actions,
        torch.full((batch,), actions_given),
        torch.full((batch,), context_given),
        height=3,
        width=5,
    )


def test_planes_hold_mask_action_and_its_running_sum():
    actions = torch.tensor([[[0.5, -1.0], [0.25, 1.0], [1.0, 0.0]]])
    result = planes(actions)
    assert result.shape == (1, num_condition_planes(2), 5, 3, 5)
    by_frame = result[0, :, :, 1, 4]
    assert by_frame[0].tolist() == [1, 1, 0, 0, 0]
    assert by_frame[1].tolist() == [1, 1, 1, 1, 1]
    assert by_frame[2].tolist() == [0, 0, 0.5, 0.25, 1.0]
    assert by_frame[3].tolist() == [0, 0, -1.0, 1.0, 0.0]
    assert torch.allclose(by_frame[4] * 8, torch.tensor([0, 0, 0.5, 0.75, 1.75]))
    assert torch.allclose(by_frame[5] * 8, torch.tensor([0, 0, -1.0, 0.0, 0.0]))


def test_dropped_actions_leave_no_trace():
    first, second = torch.rand(2, 1, 3, 2)
    assert torch.equal(planes(first, actions_given=0.0), planes(second, actions_given=0.0))
    assert not torch.equal(planes(first), planes(first, actions_given=0.0))


def test_without_context_no_frame_is_marked_clean():
    told = planes(torch.zeros(1, 3, 2), context_given=0.0)
    assert told[:, 0].abs().sum() == 0


def test_position_planes_tell_every_cell_and_frame_apart():
    codes = position_planes(num_frames=12, num_past=4, height=8, width=8)
    assert codes.shape == (NUM_POSITION_PLANES, 12, 8, 8)
    vectors = codes.flatten(1).T
    distances = torch.cdist(vectors, vectors) + torch.eye(len(vectors))
    assert distances.min() > 0.05
