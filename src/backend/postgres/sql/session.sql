-- What was asked for when this connection was opened, unless another session answers.
SELECT current_setting('dejq.session', true)
