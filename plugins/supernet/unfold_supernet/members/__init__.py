"""Any list of ONNX models with known accuracy: checked files, measured costs, and what stays in memory."""
