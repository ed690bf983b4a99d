ALTER TABLE payments
DROP COLUMN awaits_method,
DROP COLUMN refused_amount,
DROP COLUMN part_received;
