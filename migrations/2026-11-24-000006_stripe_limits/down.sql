DROP INDEX jobs_lane_idx;
DROP TABLE stripe_budgets;
