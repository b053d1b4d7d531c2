"""InfoLOOB and InfoNCE of the embeddings themselves: both directions of the loss from one score matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from cloob_cli.core.exchange import Visit
from cloob_cli.core.gather import mean_of_rows, parts_for_own_rows, scatter_sum, sum_over_processes
from cloob_cli.core.loss_forms.chunks import Gradient, score_chunks
from cloob_cli.core.loss_forms.inputs import LossInputs
from cloob_cli.core.loss_forms.steps import Steps, leave_out, positives_of_tile


def two_directions(inputs: LossInputs, with_positives: bool, steps: Steps) -> tuple[Tensor, Gradient | None]:
    """1/2 [L(X, Y) + L(Y, X)] and its gradient, the positives in the sums or not.

    One score matrix, its rows for one direction and its columns for the other.

    Each process makes the rows of its images; the columns' sums are put together from all processes. The gradient
    needs both sums, so scores are made a second time, unless all of them fitted into one chunk. As in the other
    functions, the products see deviations from the mean only; the constant that both means make is left out.
    """
    layout, inv_tau = inputs.layout, inputs.inv_tau_value
    mean_x, mean_y = mean_of_rows(inputs.x, layout), mean_of_rows(inputs.y, layout)
    images, texts = inputs.x - mean_x, inputs.y - mean_y
    row_bias, column_bias = torch.mv(images, mean_y).mul_(inv_tau), torch.mv(texts, mean_x).mul_(inv_tau)
    positives = inv_tau * torch.linalg.vecdot(images, texts) + row_bias + column_bias
    images, texts = steps.operand(images), steps.operand(texts)

    def scores(visit: Visit, chunk: slice, own_rows: slice) -> Tensor:
        everybody, bias, *_ = visit.tensors
        logits = steps.product("scores", images[chunk], everybody.T, inv_tau).add_(row_bias[chunk, None]).add_(bias)
        left_out = positives_of_tile(own_rows, visit.rows, inputs.caption_ids)
        return leave_out(logits, left_out, keep_diagonal=with_positives)

    all_column_sums = inputs.y.new_full((layout.total,), -torch.inf)
    row_sums = inputs.x.new_full((len(images), 1), -torch.inf)
    made = 0
    for visit, chunk, own_rows in score_chunks(inputs, [texts, column_bias], (), steps):
        logits = scores(visit, chunk, own_rows)
        part = steps.logsumexp_of_both(logits, all_column_sums[visit.rows])
        torch.logaddexp(row_sums[chunk], part, out=row_sums[chunk])
        made += 1
    column_sums = parts_for_own_rows(all_column_sums, layout).logsumexp(dim=0)
    loss = row_sums.sum() + column_sums.sum() - 2 * positives.sum()
    loss = sum_over_processes(loss / (2 * layout.total), layout)
    if not inputs.wanted.embeddings:
        return loss, None
    for_x, for_y = torch.zeros_like(inputs.x), torch.zeros_like(inputs.y)
    row_weights, column_weights = inputs.x.new_zeros(2, len(images)), inputs.y.new_zeros(2, layout.total)
    for visit, chunk, own_rows in score_chunks(inputs, [texts, column_bias, column_sums], (for_y,), steps):
        if made > 1 or layout.processes > 1:
            logits = scores(visit, chunk, own_rows)
        weights = steps.softmax_of_both(
            logits,
            row_sums[chunk],
            visit.tensors[2],
            own_rows.start - visit.rows.start,
            row_weights[:, chunk],
            column_weights[:, visit.rows],
        )
        steps.add_product(for_x[chunk], weights, visit.tensors[0])
        steps.add_product(visit.sums[0], weights.T, images[chunk])
    column_weights = scatter_sum(column_weights.T, layout).T
    if steps.precision == "bf16":
        # Where a negative duplicates the positive, almost all of the gradient cancels: what the operand left of a row's
        # weights is made up for at the positive, so that what remains is not rounding.
        for_x.addcmul_(texts, row_weights[1][:, None])
        for_y.addcmul_(images, column_weights[1][:, None])
    for_x.addcmul_(row_weights[0][:, None], mean_y).mul_(inv_tau / (2 * layout.total))
    for_y.addcmul_(column_weights[0][:, None], mean_x).mul_(inv_tau / (2 * layout.total))
    for_tau = torch.zeros_like(loss)
    if inputs.wanted.inv_tau:
        for_tau = sum_over_processes((inputs.x * for_x).sum() / inv_tau, layout)
    return loss, Gradient(for_x, for_y, for_tau)
