# %% [markdown]
# # your_own_table

# %%
print(1)
