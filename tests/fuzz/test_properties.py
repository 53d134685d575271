# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The properties that the unit tests show on a few examples, each on four times as many: see tests/unit/examples.py."""

# ruff: noqa: F401, F403

from __future__ import annotations

from test_balloon_stats import test_whatever_is_told_a_balloon_stays_within_its_maximum
from test_bundle import (
    test_an_anonymised_bundle_gives_the_same_plan_but_for_names,
    test_nothing_in_a_bundle_is_worse_than_a_refusal,
)
from test_memory_passes import test_from_any_start_a_host_with_enough_comes_to_rest
from test_memory_properties import *
from test_memory_sharing import test_max_min_over_pools_that_overlap
from test_memory_words import test_whatever_a_guest_says_its_neighbours_fare_as_if_it_had_all_or_claimed_its_share
from test_one_plan import collection, run, test_check_mode_and_a_real_run_plan_the_same
from test_record import (
    test_a_cut_of_any_length_is_read_or_refused_in_one_line,
    test_a_damaged_byte_is_refused_or_told,
    test_a_file_cut_anywhere_loses_its_tail_only,
    test_what_is_written_is_read_again,
)
from test_vcpu_bounds import test_a_plan_stays_in_its_classes_and_is_never_worse, test_bounds_hold_for_every_assignment
from test_vcpu_cores import test_it_serves_no_less_and_comes_to_rest
from test_vcpu_dedicated import test_what_is_somebodys_own_leaves_enough_to_all_others
from test_vcpu_judge import (
    test_no_pins_beat_the_frozen_optimum,
    test_shares_are_max_min_by_their_definition,
    test_work_is_conserved,
)
from test_vcpu_properties import *
from test_vcpu_second_run import (
    test_a_module_that_does_not_think_ahead_moves_again,
    test_the_second_run_on_a_steady_host_changes_nothing,
    test_where_loads_were_hidden_few_move_again,
)
