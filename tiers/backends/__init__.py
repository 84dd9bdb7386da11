"""The homes of models: one module per way to reach one."""
