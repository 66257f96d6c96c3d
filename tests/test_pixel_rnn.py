"""PixelRNN: recurrences pixel by pixel, and what can be seen."""

import pytest
import torch
from walks import walked

from armodels import orders
from armodels.networks.lstm_layers import DiagonalBiLSTMLayer, lstm_cell, skew, unskew
from armodels.networks.pixel_rnn import DiagonalBiLSTM, RowLSTM
from armodels.spec import ContextSpec, DataSpec


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def seen(network, height, width, **keys):
    """Which values move which step's parameters: (S, H W) of a binary image."""
    torch.manual_seed(0)
    spec = DataSpec("tiny", "image", (1, height, width), 2, "probability")
    order = orders.make("raster", spec.shape)
    net = network(spec, 1, order, num_channels=3, activation="tanh", **keys).double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    x = torch.zeros(1, *spec.shape, dtype=torch.uint8)
    changed = torch.eye(spec.num_dims, dtype=torch.uint8).view(-1, *spec.shape)
    moved = net(changed) - net(x)
    return moved[..., 0].T.abs() > 1e-12  # batches of different sizes are rounded differently


def test_skew_by_hand():
    x = torch.arange(1, 7).view(2, 3)
    assert skew(x).tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]
    assert skew(x.T).tolist() == [[1, 4, 0, 0], [0, 2, 5, 0], [0, 0, 3, 6]]
    assert torch.equal(unskew(skew(x)), x)


def test_the_cell_is_an_lstm():
    torch.manual_seed(0)
    lstm = torch.nn.LSTMCell(3, 2)
    x, state, cell = torch.randn(5, 3), torch.randn(5, 2), torch.randn(5, 2)
    write, keep, value, show = (
        x @ lstm.weight_ih.T + lstm.bias_ih + state @ lstm.weight_hh.T + lstm.bias_hh
    ).chunk(4, 1)
    gates = torch.stack([keep, write, show, value], -1).flatten(1)
    torch.testing.assert_close(lstm_cell(gates, cell), lstm(x, (state, cell)))


def test_a_diagonal_scan_walks_pixel_by_pixel():
    torch.manual_seed(0)
    height, width, units = 3, 4, torch.zeros(2, dtype=torch.long)
    wide = torch.zeros(4, dtype=torch.long)
    layer = DiagonalBiLSTMLayer(wide, units, None, (height, width), 2)
    gates = torch.randn(2, 5, 8, height, width)
    states = torch.zeros(2, 5, height + 1, width + 1, 2)  # a row above and a column before
    cells = torch.zeros_like(states)
    for side in range(2):
        (left, above), state, cell = layer.state_to_state[side], states[side], cells[side]
        for i in range(height):
            for j in range(width):
                own = gates[side, :, :, i, j]
                own = own + state[:, i + 1, j] @ left + state[:, i, j + 1] @ above
                state[:, i + 1, j + 1], cell[:, i + 1, j + 1] = lstm_cell(own, cell[:, i + 1, j])
    expected = states[:, :, 1:, 1:].movedim(-1, 2)
    torch.testing.assert_close(layer.scan(gates), expected)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("size", [(5, 6), (6, 3), (1, 5), (5, 1)])
def test_a_diagonal_bilstm_sees_every_earlier_pixel(size, num_layers):
    found = seen(DiagonalBiLSTM, *size, num_layers=num_layers, first_kernel_size=3)
    earlier = torch.ones_like(found).tril(-1)
    assert torch.equal(found, earlier)


def test_a_row_lstm_sees_a_triangle():
    found = seen(RowLSTM, 3, 7, num_layers=1, first_kernel_size=3)
    # The pixel in row 2, column 3, marked 2 here: the first convolution sees one column further
    # right than the pixel of the row above, whence the triangle widens by one a row.
    marks = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 2, 0, 0, 0]])
    assert torch.equal(found[17].view(3, 7), marks == 1)
    # More layers widen it to the left alone.
    found = seen(RowLSTM, 3, 7, num_layers=3, first_kernel_size=3)
    marks[2, 0] = 1
    assert torch.equal(found[17].view(3, 7), marks == 1)


@pytest.mark.parametrize("network", [RowLSTM, DiagonalBiLSTM])
def test_the_cached_step_hears_what_a_picture_says_of_each_pixel(network):
    torch.manual_seed(0)
    spec = DataSpec("tiny", "image", (3, 3, 2), 2, "probability")
    picture = ContextSpec("picture", (2, 2, 1), 3)
    order = orders.make("raster", spec.shape)
    net = network(spec, 1, order, num_channels=4, context=picture).double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    x, pictures = torch.randint(2, (5, *spec.shape)), torch.randint(3, (5, *picture.shape))
    expected = net(x, pictures)
    with torch.no_grad():
        params = walked(net, x.flatten(1)[:, order.table], pictures)
    torch.testing.assert_close(params, expected, rtol=0, atol=1e-11)


def test_refusals():
    spec = DataSpec("tiny", "image", (3, 2, 2), 2, "probability")
    with pytest.raises(
        ValueError, match="model RowLSTM follows the raster order only, not reverse"
    ):
        RowLSTM(spec, 1, orders.make("reverse", spec.shape))
    raster = orders.make("raster", spec.shape)
    with pytest.raises(ValueError, match="num_output_channels is 2, but a pixel has 3 values"):
        DiagonalBiLSTM(spec, 1, raster, num_output_channels=2)
    with pytest.raises(ValueError, match="kernel_size is 2; it must be odd and at least 3"):
        RowLSTM(spec, 1, raster, kernel_size=2)
